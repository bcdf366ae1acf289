import type { PortNetwork } from '../backends/net/port.js';
import type { RemoteStream } from './remote-stream.js';

/** The program's end of a network whose frames it gets as a stream. It outlives resets of the machine. */
export class NetPort {
  readonly #stream: RemoteStream;

  constructor(stream: RemoteStream) {
    this.#stream = stream;
    stream.on('error', () => {}); // the program's own: it knows
  }

  /** Connects it to the network of this power cycle, whose end disconnects it. */
  attach(network: PortNetwork): void {
    const { stream } = network;
    this.#stream.pipe(stream).pipe(this.#stream, { end: false });
    const unplug = () => {
      // Not when the machine ended it.
      if (!this.#stream.writableEnded) stream.destroy();
    };
    this.#stream.once('close', unplug);
    stream.once('close', () => this.#stream.off('close', unplug));
    if (this.#stream.destroyed) unplug();
  }
}

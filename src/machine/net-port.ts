import type { PortNetwork } from '../backends/net/port.js';
import type { NetConfig } from './machine.js';
import type { RemoteStream } from './remote-stream.js';
import type { StreamHub } from './stream-hub.js';

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

/** The ports of a machine's cards of that type, by the card's index. */
export function openNetPorts(cards: readonly NetConfig[], streams: StreamHub): ReadonlyMap<number, NetPort> {
  return new Map(
    cards.flatMap(({ type }, index) =>
      type === 'port' ? [[index, new NetPort(streams.open('net', index, { objectMode: true }))]] : [],
    ),
  );
}

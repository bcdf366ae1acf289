import type { Duplex } from 'node:stream';
import type { RemoteStream } from './remote-stream.js';

/** A named port of a virtio console, between QEMU's end of it and the program's stream. It outlives resets of the machine. */
export class QemuPort {
  readonly name: string;
  readonly #stream: RemoteStream;
  #detach: () => void = () => {};

  constructor(name: string, stream: RemoteStream) {
    this.name = name;
    this.#stream = stream;
    stream.on('error', () => {}); // the program's own: it knows
  }

  /** Connects it to the port of this power cycle. @param port The character device's end. */
  attach(port: Duplex): void {
    this.#detach();
    const stream = this.#stream;
    const onOutput = (bytes: Buffer) => {
      // Nobody will read any more: a guest that prints must not wait for ever.
      if (stream.writable && !stream.write(bytes)) port.pause();
    };
    const onInput = (bytes: Buffer) => {
      if (port.writable && !port.write(bytes)) stream.pause();
    };
    const moreInput = () => void stream.resume();
    const moreOutput = () => void port.resume();
    port.on('data', onOutput).on('drain', moreInput);
    stream.on('data', onInput).on('drain', moreOutput).on('close', moreOutput);
    stream.resume();
    this.#detach = () => {
      port.off('data', onOutput).off('drain', moreInput).resume();
      stream.off('data', onInput).off('drain', moreOutput).off('close', moreOutput).pause();
    };
  }

  /** QEMU is gone: passes on what the guest wrote last, as much as a socket holds, whether it is read or not. */
  async finish(port: Duplex): Promise<void> {
    this.#detach();
    port.on('data', (bytes: Buffer) => this.#stream.writable && this.#stream.write(bytes)).resume();
    if (port.readableEnded || port.destroyed) return;
    await new Promise<void>((resolve) => port.once('end', resolve).once('close', resolve));
  }
}

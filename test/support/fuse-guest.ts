/** A guest with a virtio-fs device, which speaks FUSE as far as a file needs it: <linux/fuse.h>. */
import type { VirtioDevice } from '../../src/virtio/device.js';
import { ExternalGuest } from './external-guest.js';

const LOOKUP = 1;
const OPEN = 14;
const READ = 15;
const WRITE = 16;
const RELEASE = 18;
const INIT = 26;
const CREATE = 35;
const ROOT_ID = 1n;
const REQUEST_QUEUE = 1;
const HEADER_BYTES = 40;
const REPLY_HEADER_BYTES = 16;
const ENTRY_BYTES = 128;
const MAX_BYTES = 64 * 1024;
const O_RDWR = 2;

export class FuseGuest extends ExternalGuest {
  readonly #request = this.arena.place(4096 + MAX_BYTES);
  readonly #reply = this.arena.place(4096 + MAX_BYTES);
  #unique = 0n;

  constructor(device: VirtioDevice) {
    super(device);
    this.driver.start();
  }

  /** What a mount begins with. @returns The server's minor version. */
  async init(): Promise<number> {
    const reply = await this.#ask(INIT, ROOT_ID, [u32(7, 31, 0, 0)]);
    return reply.readUInt32LE(4);
  }

  async read(name: string): Promise<Buffer> {
    const node = (await this.#ask(LOOKUP, ROOT_ID, [text(name)])).readBigUInt64LE();
    const handle = (await this.#ask(OPEN, node, [u32(0, 0)])).readBigUInt64LE();
    const data = Buffer.from(await this.#ask(READ, node, [u64(handle, 0n), u32(MAX_BYTES, 0), u64(0n), u32(0, 0)]));
    await this.#ask(RELEASE, node, [u64(handle), u32(0, 0), u64(0n)]);
    return data;
  }

  async write(name: string, data: Uint8Array): Promise<void> {
    const entry = await this.#ask(CREATE, ROOT_ID, [u32(O_RDWR, 0o100644, 0, 0), text(name)]);
    const [node, handle] = [entry.readBigUInt64LE(), entry.readBigUInt64LE(ENTRY_BYTES)];
    await this.#ask(WRITE, node, [u64(handle, 0n), u32(data.length, 0), u64(0n), u32(0, 0), data]);
    await this.#ask(RELEASE, node, [u64(handle), u32(0, 0), u64(0n)]);
  }

  /** @returns What follows the reply's header. @throws Error with the errno's number as its message. */
  async #ask(opcode: number, node: bigint, parts: readonly Uint8Array[]): Promise<Buffer> {
    const body = Buffer.concat(parts);
    const header = Buffer.concat([
      u32(HEADER_BYTES + body.length, opcode),
      u64(++this.#unique, node),
      new Uint8Array(16), // as root
    ]);
    this.memory.write(this.#request, Buffer.concat([header, body]));
    const { writtenBytes } = await this.submit(REQUEST_QUEUE, [
      { gpa: this.#request, length: header.length + body.length },
      { gpa: this.#reply, length: 4096 + MAX_BYTES, writable: true },
    ]);
    const reply = Buffer.from(this.memory.read(this.#reply, writtenBytes));
    const error = reply.readInt32LE(4);
    if (error !== 0) throw new Error(`errno ${-error}`);
    return reply.subarray(REPLY_HEADER_BYTES);
  }
}

const u32 = (...values: number[]) => new Uint8Array(Uint32Array.from(values).buffer);
const u64 = (...values: bigint[]) => new Uint8Array(BigUint64Array.from(values).buffer);
const text = (value: string) => Buffer.from(`${value}\0`);

/** A vhost-user frontend that says what it is told to, true or not; and the honest way to a running ring. */
import { setTimeout as sleep } from 'node:timers/promises';
import { MessageSocket, type Message } from '../../src/backends/vhost-user/message-socket.js';
import { FLAG_NEED_REPLY, PROTOCOL_F, REQUEST } from '../../src/backends/vhost-user/protocol.js';
import { EventFd } from '../../src/kvm/event-fd.js';
import { GuestRam } from '../../src/kvm/ram.js';
import { GuestMemory } from '../../src/memory/guest-memory.js';
import { addon, native } from '../../src/native/addon.js';
import { VIRTIO_F_VERSION_1 } from '../../src/virtio/defs.js';
import { DriverArena, DriverQueue } from '../../src/virtio/driver.js';

export const USER_BASE = 1n << 40n;
export const RAM_BYTES = 2 ** 20;
const F_PROTOCOL_FEATURES = 1n << 30n;

export class RawFrontend {
  readonly ram = GuestRam.create(0, RAM_BYTES);
  readonly memory = new GuestMemory();
  readonly arena: DriverArena;
  readonly kick = new EventFd();
  readonly call = new EventFd();
  readonly err = new EventFd();
  /** Why the connection is over. */
  ended: string | undefined;
  readonly #messages: MessageSocket;
  readonly #answers: Message[] = [];

  constructor(path: string) {
    this.memory.addRegion(this.ram);
    this.arena = new DriverArena(this.memory, 0x1000);
    this.#messages = new MessageSocket(
      native(() => new (addon().UnixSocket)('connect', path)),
      (message) => void this.#answers.push({ ...message, payload: message.payload.slice() }),
      ({ message }) => (this.ended = message),
    );
  }

  send(request: number, payload: Uint8Array, fds: readonly number[] = [], flags = 0): void {
    this.#messages.send({ request, flags }, payload, fds);
  }

  /** Sends, and waits for the answer or the acknowledgement; undefined where the connection ended instead. */
  async ask(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<Uint8Array | undefined> {
    this.send(request, payload, fds, FLAG_NEED_REPLY);
    for (let i = 0; i < 2000 && this.ended === undefined && this.#answers.length === 0; i++) await sleep(1);
    return this.#answers.shift()?.payload;
  }

  /** Everything up to a ring that runs, with a driver's queue in it. */
  async run({ index = 0, size = 8, base = 0 } = {}): Promise<DriverQueue> {
    const queue = new DriverQueue(this.arena, size);
    await this.negotiate();
    await this.setRing(queue, { index, base });
    return queue;
  }

  async negotiate(): Promise<void> {
    await this.ask(REQUEST.getFeatures.id, new Uint8Array(0));
    this.send(REQUEST.setProtocolFeatures.id, u64(PROTOCOL_F.REPLY_ACK | PROTOCOL_F.CONFIG | PROTOCOL_F.BACKEND_REQ));
    await this.ask(REQUEST.setFeatures.id, u64(VIRTIO_F_VERSION_1 | F_PROTOCOL_FEATURES));
    await this.ask(REQUEST.setMemTable.id, REQUEST.setMemTable.query.encode([this.region()]), [this.ram.fd!]);
  }

  region() {
    return { gpa: 0n, sizeBytes: BigInt(RAM_BYTES), userAddress: USER_BASE, mmapOffset: 0n };
  }

  async setRing(queue: DriverQueue, { index = 0, base = 0 } = {}): Promise<void> {
    const at = (gpa: number) => USER_BASE + BigInt(gpa);
    const address = { index, desc: at(queue.desc), avail: at(queue.avail), used: at(queue.used) };
    await this.ask(REQUEST.setVringNum.id, REQUEST.setVringNum.query.encode({ index, num: queue.size }));
    await this.ask(REQUEST.setVringBase.id, REQUEST.setVringBase.query.encode({ index, num: base }));
    await this.ask(REQUEST.setVringAddr.id, REQUEST.setVringAddr.query.encode(address));
    await this.ask(REQUEST.setVringErr.id, u64(BigInt(index)), [this.err.fd]);
    await this.ask(REQUEST.setVringCall.id, u64(BigInt(index)), [this.call.fd]);
    await this.ask(REQUEST.setVringKick.id, u64(BigInt(index)), [this.kick.fd]);
    await this.ask(REQUEST.setVringEnable.id, REQUEST.setVringEnable.query.encode({ index, num: 1 }));
  }

  close(): void {
    this.#messages.close();
    for (const eventFd of [this.kick, this.call, this.err]) eventFd.close();
    this.ram.close();
  }
}

export const u64 = (value: bigint) => new Uint8Array(BigUint64Array.of(value).buffer);

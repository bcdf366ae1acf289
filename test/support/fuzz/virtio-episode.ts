import { setImmediate } from 'node:timers/promises';
import {
  STATUS_DRIVER_OK,
  STATUS_NEEDS_RESET,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
} from '../../../src/virtio/defs.js';
import { VmmError } from '../../../src/errors.js';
import type { DriverArena, DriverBuffer, DriverQueue } from '../../../src/virtio/driver.js';
import { CASES_PER_EPISODE, checkRead, hex, type Log } from './episode.js';
import { GuardedMemory, RAM, RAM_END } from './memory.js';
import type { FuzzRandom } from './random.js';
import { mmioRig, pciRig, type Rig } from './rigs.js';
import { SUBJECTS, type Subject, type SubjectName } from './subjects.js';

export const TRANSPORTS = ['mmio', 'pci', 'pci, INTx'] as const;
export type Transport = (typeof TRANSPORTS)[number];

/**
 * Turns of the event loop within which a device must have ended what it had in flight, and how long it may take where
 * threads are at work.
 */
const MAX_TURNS_TO_RESET = 200;
const MAX_RESET_MS = 60_000;
/** Guest memory is the same for all episodes: it is cleared for each. */
const guarded = new GuardedMemory();

/** A driver that behaves in part, against one device. @throws what the device threw, or which rule it broke. */
export async function virtioEpisode(
  name: SubjectName,
  transport: Transport,
  random: FuzzRandom,
  log: Log,
): Promise<void> {
  guarded.clear();
  const subject: Subject = await SUBJECTS[name](random);
  const { memory } = guarded;
  const rig =
    transport === 'mmio' ? mmioRig(subject.device, memory) : pciRig(subject.device, memory, transport === 'pci');
  const episode = new Episode(rig, subject, random, log);
  try {
    await episode.restart();
    for (let i = 0; i < CASES_PER_EPISODE; i++) {
      await episode.act();
      subject.check();
    }
    await episode.end();
  } finally {
    await subject.close();
  }
  if (!guarded.guardsIntact) throw new Error('bytes outside guest memory were written');
}

class Episode {
  readonly #rig: Rig;
  readonly #subject: Subject;
  readonly #random: FuzzRandom;
  readonly #log: Log;
  #queues: readonly DriverQueue[] = [];
  #arena!: DriverArena;

  constructor(rig: Rig, subject: Subject, random: FuzzRandom, log: Log) {
    this.#rig = rig;
    this.#subject = subject;
    this.#random = random;
    this.#log = log;
  }

  /** One case. */
  async act(): Promise<void> {
    const random = this.#random;
    // A device that has failed does nothing more: there is little to find.
    if (this.#rig.core.status & STATUS_NEEDS_RESET && random.chance(3)) return this.restart();
    // A conversation has to go on for a while.
    const kind = this.#subject.answers && !random.chance(4) ? 0 : random.below(100);
    if (kind < 45) await this.#requests();
    else if (kind < 55) this.#brokenRequest();
    else if (kind < 70) this.#register();
    else if (kind < 74) this.#scribble();
    else if (kind < 84) this.#log.step('the host acts', () => this.#subject.hostActs());
    else if (kind < 94) await this.#turn();
    else if (kind < 97) await this.#roundTrip();
    else await this.restart();
  }

  /** Resets the device, which must end in time and come up again. */
  async restart(): Promise<void> {
    await this.#reset();
    const features = this.#random.chance(2) ? ~0n : ~this.#random.u64();
    const maxQueueSize = 4 << this.#random.below(5);
    const up = this.#log.step(`start, features ${hex(features & 0xffffffffffffffffn)}, queues of ${maxQueueSize}`, () =>
      this.#rig.start(features, maxQueueSize),
    );
    this.#queues = up.queues;
    this.#arena = up.arena;
    const { status, lastFailure } = this.#rig.core;
    if ((status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) !== STATUS_DRIVER_OK) {
      throw new Error(`the device does not come up: status ${hex(status)}, ${lastFailure ?? 'no failure'}`);
    }
  }

  /** After its reset a device leaves guest memory alone, whatever the host does. */
  async end(): Promise<void> {
    await this.#reset();
    const before = guarded.copy();
    for (let i = 0; i < 5; i++) this.#log.step('the host acts after the reset', () => this.#subject.hostActs());
    await this.#turn();
    await this.#turn();
    if (!guarded.equals(before)) throw new Error('guest memory was written after the reset');
    await this.restart();
    await this.#reset();
  }

  async #reset(): Promise<void> {
    this.#log.step('reset', () => this.#rig.reset());
    const deadline = performance.now() + MAX_RESET_MS;
    for (let turns = 0; this.#rig.core.status !== 0; turns++) {
      if (turns >= MAX_TURNS_TO_RESET && performance.now() > deadline) {
        throw new Error(`status is ${hex(this.#rig.core.status)} long after a reset`);
      }
      await setImmediate();
    }
  }

  async #turn(): Promise<void> {
    this.#log.step('a turn of the event loop', () => {});
    await setImmediate();
  }

  async #requests(): Promise<void> {
    const { device, maxRequestsAtOnce, answers } = this.#subject;
    // Not drawn where there is no choice, so that the other devices' seeds stay what they are.
    for (let left = maxRequestsAtOnce ? 1 + this.#random.below(maxRequestsAtOnce) : 1; left > 0; left--) {
      this.#request();
      // What builds on an answer waits for it.
      if (!answers || this.#random.chance(3)) continue;
      this.#log.step('the answers', () => {});
      await device.quiesce?.();
      device.resume?.();
    }
  }

  /** A chain as a driver makes it; where in memory, and how long, is anything but sure. */
  #request(): void {
    const random = this.#random;
    const index = random.below(this.#queues.length);
    const queue = this.#queues[index];
    const payload = this.#subject.payload(index);
    const buffers: DriverBuffer[] = [];
    const at = this.#place(payload.length);
    this.#arena.memory.write(at, payload);
    const cut = random.chance(3) ? random.below(payload.length + 1) : payload.length;
    const whole = this.#subject.answers === true && !random.chance(200);
    if (payload.length > 0 && (whole || !random.chance(5))) {
      buffers.push({ gpa: at, length: cut });
      if (cut < payload.length) buffers.push({ gpa: at + cut, length: payload.length - cut });
    }
    const writable = random.pick([whole ? 1 : 0, 1, 1, 2, 3]);
    if (whole) buffers.push({ gpa: this.#place(64), length: 11 + random.below(50), writable: true });
    for (let i = 0; i < writable; i++) {
      const length = random.pick([1, 8, 16, 44, 512, 1526, 4096, 4096 + random.below(60_000)]);
      buffers.push({ gpa: !whole && random.chance(30) ? random.u32() : this.#place(length), length, writable: true });
    }
    if (buffers.length === 0) return;
    this.#log.step(`request in queue ${index}: ${describe(buffers)}`, () => {
      try {
        while (queue.takeUsed());
        if (random.chance(4)) queue.addIndirect(this.#place(16 * buffers.length), buffers);
        else queue.add(buffers);
      } catch (error) {
        // No descriptor is free, or the used ring was scribbled over.
        if (!(error instanceof VmmError)) throw error;
      }
    });
    if (!random.chance(4)) this.#kick(index);
  }

  /** Descriptors, heads and indices at random. */
  #brokenRequest(): void {
    const random = this.#random;
    const index = random.below(this.#queues.length);
    const queue = this.#queues[index];
    const count = 1 + random.below(4);
    const flags = [0, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, 3, VIRTQ_DESC_F_INDIRECT, 5, 7, 0xffff];
    const head = random.below(queue.size);
    for (let i = 0; i < count; i++) {
      const at = (head + i) % queue.size;
      const gpa = random.chance(2) ? random.u64() : this.#edge();
      const next = random.chance(2) ? (at + 1) % queue.size : random.u32() & 0xffff;
      queue.setDescriptor(
        at,
        gpa & 0xffffffffffffffffn,
        random.chance(2) ? random.u32() : 16,
        random.pick(flags),
        next,
      );
    }
    this.#log.step(`broken request in queue ${index}, head ${head}`, () => {
      const kind = random.below(6);
      if (kind === 0) queue.availIdx = random.u32() & 0xffff;
      else queue.publish(kind === 1 ? random.u32() & 0xffff : head);
      if (random.chance(3)) queue.usedEvent = random.u32() & 0xffff;
    });
    this.#kick(index);
  }

  #kick(index: number): void {
    this.#log.step(`kick ${index}`, () => this.#rig.kick(index));
  }

  /** An access to any register, of any width. */
  #register(): void {
    const random = this.#random;
    const { base, bytes } = random.pick(this.#rig.windows);
    // Most registers are in the first 512 bytes.
    const address = base + random.below(random.chance(3) ? bytes : Math.min(bytes, 512));
    const size = random.pick([1, 2, 4, 4] as const);
    const aligned = random.chance(4) ? address : address - (address % size);
    if (random.chance(2)) {
      const value = this.#log.step(`read ${hex(aligned)}, ${size}`, () => this.#rig.bus.read(aligned, size));
      checkRead(value, size, `the read at ${hex(aligned)}`);
    } else {
      const value = random.u32() % 2 ** (8 * size);
      this.#log.step(`write ${hex(aligned)}, ${size}: ${hex(value)}`, () => this.#rig.bus.write(aligned, size, value));
    }
  }

  /** Another processor writes anywhere, into rings as likely as not. */
  #scribble(): void {
    const random = this.#random;
    const bytes = random.bytes(1 + random.below(16));
    const gpa = random.chance(2) ? 0x1000 + random.below(0x3000) : random.below(RAM[0].sizeBytes - bytes.length);
    this.#log.step(`scribble ${hex(gpa)}`, () => this.#arena.memory.write(gpa, bytes));
  }

  /** A device that has given back all it took can be saved, and takes what it saved. */
  async #roundTrip(): Promise<void> {
    const { device } = this.#subject;
    this.#log.step('quiesce', () => {});
    await device.quiesce?.();
    this.#log.step('save and restore', () => {
      try {
        this.#rig.roundTrip();
      } catch (error) {
        const refused = error instanceof VmmError && error.code === 'INVALID_STATE';
        if (!(refused && this.#subject.mayRefuseToSave)) throw error;
      }
    });
    device.resume?.();
  }

  /** Room for so many bytes in RAM, behind the rings. */
  #place(length: number): number {
    const first = 0x10000;
    return first + this.#random.below(RAM[0].sizeBytes - first - length);
  }

  /** Close to where a region begins or ends. */
  #edge(): bigint {
    const at = this.#random.pick([RAM[0].sizeBytes, RAM[1].gpa, RAM_END]);
    return BigInt(at - 32 + this.#random.below(64));
  }
}

const describe = (buffers: readonly DriverBuffer[]) =>
  buffers.map(({ gpa, length, writable }) => `${writable ? 'w' : 'r'} ${hex(gpa)}+${length}`).join(', ');

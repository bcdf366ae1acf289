/** The entropy device: virtio 1.2, 5.4. One queue; the device fills each buffer with random bytes. */
import { randomFillSync } from 'node:crypto';
import { VIRTIO_ID_ENTROPY } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import { Turns } from '../../../virtio/queue/turns.js';
import type { AccessSize } from '../../../bus/device.js';

const QUEUE_SIZE = 64;
/** Bytes for one buffer. A guest asks for some hundred; one that asks for a gigabyte gets less, as the spec allows. */
const MAX_BYTES_PER_BUFFER = 64 * 1024;
/** Bytes before the event loop gets its turn: a driver that never stops asking would hold it up. */
const MAX_BYTES_PER_TURN = 1024 * 1024;

export interface VirtioRngConfig {
  /** Fills the bytes in place. Default: the host's cryptographic generator. */
  fill?: (bytes: Uint8Array) => void;
}

export class VirtioRng implements VirtioDevice {
  readonly name = 'virtio-rng';
  readonly type = VIRTIO_ID_ENTROPY;
  readonly features = 0n;
  readonly queueSizes = [QUEUE_SIZE];
  readonly #fill: (bytes: Uint8Array) => void;
  #context: VirtioContext | undefined;
  readonly #turns = new Turns(() => this.#serve());

  constructor(config: VirtioRngConfig = {}) {
    this.#fill = config.fill ?? randomFillSync;
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(NO_CONFIG, offset, size);
  }

  writeConfig(): void {}

  activate(context: VirtioContext): void {
    this.#context = context;
  }

  queueNotify(): void {
    this.#turns.take();
  }

  reset(): void {
    this.#context = undefined;
    this.#turns.cancel();
  }

  save(): undefined {
    return undefined;
  }

  restore(): void {}

  #serve(): boolean {
    const queue = this.#context?.queues[0];
    if (!queue) return false;
    let left = MAX_BYTES_PER_TURN;
    return queue.drain((chain) => {
      const bytes = this.#fillChain(chain);
      left -= bytes;
      queue.push(chain, bytes);
      return left > 0;
    });
  }

  #fillChain(chain: DescriptorChain): number {
    let filled = 0;
    for (const piece of chain.writable) {
      const part = piece.subarray(0, MAX_BYTES_PER_BUFFER - filled);
      this.#fill(part);
      filled += part.length;
      if (filled === MAX_BYTES_PER_BUFFER) break;
    }
    return filled;
  }
}

const NO_CONFIG = new Uint8Array(0);

import type { AccessSize } from '../../../src/bus/device.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../src/virtio/device.js';
import type { DescriptorChain } from '../../../src/virtio/queue/chain.js';

/** Copies what it reads from a chain to where it may write; with `hold`, only when the test says so. */
export class EchoDevice implements VirtioDevice {
  readonly name = 'echo';
  readonly type = 42;
  readonly features = 0x5n | (1n << 40n);
  readonly config = new Uint8Array(12);
  context: VirtioContext | undefined;
  resets = 0;
  notifies = 0;
  hold = false;
  readonly held: { index: number; chain: DescriptorChain }[] = [];

  constructor(readonly queueSizes: readonly number[] = [8, 4]) {}

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.config, offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size && offset + i < this.config.length; i++) this.config[offset + i] = value >>> (8 * i);
  }
  activate(context: VirtioContext): void {
    this.context = context;
  }
  queueNotify(index: number): void {
    this.notifies++;
    this.context!.queues[index]!.drain((chain) => {
      if (this.hold) this.held.push({ index, chain });
      else this.complete(index, chain);
    });
  }
  complete(index: number, chain: DescriptorChain): void {
    const bytes = new Uint8Array(Math.min(chain.readableBytes, 65536));
    chain.read(0, bytes);
    this.context?.queues[index]?.push(chain, chain.write(0, bytes));
    this.context?.queues[index]?.signal();
  }
  reset(): void | Promise<void> {
    this.resets++;
    this.context = undefined;
  }
  save(): unknown {
    return { config: this.config.slice() };
  }
  restore(state: unknown): void {
    this.config.set((state as { config: Uint8Array }).config);
  }
}

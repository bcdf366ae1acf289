/**
 * Port 0x80, where PC firmware shows how far its power-on self test came. Kernels write there for a short delay: keep it
 * on the bus so that those writes are not counted as unmapped.
 */
import type { Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import { IsaDevice } from './isa-device.js';

export interface PostPortState {
  code: number;
}

export class PostPort extends IsaDevice implements Snapshottable<PostPortState> {
  readonly name = 'post-port';
  #code = 0;

  /** The last code written. */
  get code(): number {
    return this.#code;
  }

  protected readByte(): number {
    return this.#code;
  }

  protected writeByte(_offset: number, value: number): void {
    this.#code = value;
  }

  reset(): void {
    this.#code = 0;
  }

  save(): PostPortState {
    return { code: this.#code };
  }

  restore(state: PostPortState): void {
    this.#code = new SavedState(this.name, state).integer('code', 0xff);
  }
}

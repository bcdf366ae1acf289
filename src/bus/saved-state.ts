import { VmmError } from '../errors.js';

/**
 * Reads the fields of a device's saved state, which may come from a damaged file: every field is checked before any is
 * used, so a refused state leaves the device as it was.
 */
export class SavedState {
  readonly #device: string;
  readonly #fields: Record<string, unknown>;

  /** @throws VmmError code "INVALID_ARGUMENT" when the state is no object. */
  constructor(device: string, state: unknown) {
    this.#device = device;
    if (typeof state !== 'object' || state === null) throw this.#refuse('the state', 'an object', state);
    this.#fields = state as Record<string, unknown>;
  }

  /** @throws VmmError code "INVALID_ARGUMENT" unless the field is an integer in [0, max]. */
  integer(field: string, max: number): number {
    const value = this.#fields[field];
    if (Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= max) return value as number;
    throw this.#refuse(field, `an integer from 0 to ${max}`, value);
  }

  /** @throws VmmError code "INVALID_ARGUMENT" unless the field is a number in [-max, max]. */
  number(field: string, max: number): number {
    const value = this.#fields[field];
    if (typeof value === 'number' && Math.abs(value) <= max) return value;
    throw this.#refuse(field, `a number from ${-max} to ${max}`, value);
  }

  /** @throws VmmError code "INVALID_ARGUMENT" unless the field is a boolean. */
  boolean(field: string): boolean {
    const value = this.#fields[field];
    if (typeof value === 'boolean') return value;
    throw this.#refuse(field, 'a boolean', value);
  }

  /**
   * @returns A copy.
   * @throws VmmError code "INVALID_ARGUMENT" unless the field is a Uint8Array with min to max bytes.
   */
  bytes(field: string, min: number, max: number): Uint8Array {
    const value = this.#fields[field];
    if (value instanceof Uint8Array && value.length >= min && value.length <= max) return Uint8Array.from(value);
    throw this.#refuse(field, `a Uint8Array of ${min} to ${max} bytes`, value);
  }

  /** @throws VmmError code "INVALID_ARGUMENT" unless the field is an array of exactly `length` elements. */
  list(field: string, length: number): readonly unknown[] {
    const value = this.#fields[field];
    if (Array.isArray(value) && value.length === length) return value;
    throw this.#refuse(field, `an array of ${length}`, value);
  }

  #refuse(field: string, wanted: string, value: unknown): VmmError {
    const shown = typeof value === 'number' ? String(value) : value === null ? 'null' : typeof value;
    return new VmmError(
      'INVALID_ARGUMENT',
      `${this.#device}: saved state: ${field} is ${shown}, not ${wanted}; give a state that save() returned`,
    );
  }
}

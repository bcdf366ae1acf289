import { VmmError } from '../errors.js';

/** @throws VmmError code "INVALID_ARGUMENT" where the value is no array. */
export function requireArray(name: string, value: readonly unknown[]): void {
  if (!Array.isArray(value)) throw new VmmError('INVALID_ARGUMENT', `${name} must be an array`);
}

/** @returns The value. @throws VmmError code "INVALID_ARGUMENT" where it is no integer from 0 to `max`. */
export function requireInteger(name: string, value: number, max = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isInteger(value) || value < 0 || value > max) {
    throw new VmmError('INVALID_ARGUMENT', `${name} must be an integer from 0 to ${max}`);
  }
  return value;
}

import { VmmError } from '../errors.js';

/** @throws VmmError code "INVALID_ARGUMENT" where the value is no array. */
export function requireArray(name: string, value: readonly unknown[]): void {
  if (!Array.isArray(value)) throw new VmmError('INVALID_ARGUMENT', `${name} must be an array`);
}

/** @returns The value. @throws VmmError code "INVALID_ARGUMENT" where it is no bigint from 0 to 2^64 - 1. */
export function requireU64(name: string, value: bigint): bigint {
  if (typeof value !== 'bigint' || value < 0n || value >= 1n << 64n) {
    throw new VmmError('INVALID_ARGUMENT', `${name} must be a bigint from 0n to 2n ** 64n - 1n, not ${String(value)}`);
  }
  return value;
}

/** @returns The entry. @throws VmmError code "INVALID_ARGUMENT", with the names there are, where the table has none. */
export function requireName<T>(name: string, table: Readonly<Record<string, T>>, key: string): T {
  if (!Object.hasOwn(table, key)) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      `${name} must be one of ${Object.keys(table).join(', ')}, not ${String(key)}`,
    );
  }
  return table[key];
}

/** @returns The value. @throws VmmError code "INVALID_ARGUMENT" where it is no integer from 0 to `max`. */
export function requireInteger(name: string, value: number, max = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isInteger(value) || value < 0 || value > max) {
    throw new VmmError('INVALID_ARGUMENT', `${name} must be an integer from 0 to ${max}`);
  }
  return value;
}

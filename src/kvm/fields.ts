/** What the coders of KVM's structures (coders.ts) ask of the values that they are given. */
import { VmmError } from '../errors.js';

/** A structure's two directions, at a place in a buffer. */
export interface Coder<T> {
  decode(view: DataView, at: number): T;
  /**
   * Bytes that no field names stay as they are.
   *
   * @throws VmmError code "INVALID_ARGUMENT" naming the field that is missing, of the wrong type or out of range.
   */
  encode(value: T, view: DataView, at: number): void;
}

const invalid = (path: string, expected: string) => new VmmError('INVALID_ARGUMENT', `${path} must be ${expected}`);
const notAnInteger = (path: string, kind: string) => invalid(path, `an integer (${kind})`);
const notABigint = (path: string, kind: string) => invalid(path, `a bigint (${kind})`);

export function u8(value: unknown, path: string): number {
  if (typeof value !== 'number' || (value & 0xff) !== value) throw notAnInteger(path, 'u8');
  return value;
}

export function u16(value: unknown, path: string): number {
  if (typeof value !== 'number' || (value & 0xffff) !== value) throw notAnInteger(path, 'u16');
  return value;
}

export function u32(value: unknown, path: string): number {
  if (typeof value !== 'number' || value >>> 0 !== value) throw notAnInteger(path, 'u32');
  return value;
}

export function s32(value: unknown, path: string): number {
  if (typeof value !== 'number' || (value | 0) !== value) throw notAnInteger(path, 's32');
  return value;
}

export function u64(value: unknown, path: string): bigint {
  if (typeof value !== 'bigint' || BigInt.asUintN(64, value) !== value) throw notABigint(path, 'u64');
  return value;
}

export function s64(value: unknown, path: string): bigint {
  if (typeof value !== 'bigint' || BigInt.asIntN(64, value) !== value) throw notABigint(path, 's64');
  return value;
}

export function requireObject(value: unknown, path: string): void {
  if (typeof value !== 'object' || value === null) throw invalid(path, 'an object');
}

export function getBytes(view: DataView, at: number, length: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + at, length).slice();
}

export function setBytes(view: DataView, at: number, value: unknown, length: number, path: string): void {
  if (!(value instanceof Uint8Array) || value.byteLength !== length) {
    throw invalid(path, `a Uint8Array of ${length} bytes`);
  }
  new Uint8Array(view.buffer, view.byteOffset + at, length).set(value);
}

export function getArray<T>(length: number, item: (index: number) => T): T[] {
  return Array.from({ length }, (_, index) => item(index));
}

export function setArray(value: unknown, length: number, path: string, set: (item: unknown, index: number) => void) {
  if (!Array.isArray(value) || value.length !== length) throw invalid(path, `an array of ${length}`);
  for (let index = 0; index < length; index++) set(value[index], index);
}

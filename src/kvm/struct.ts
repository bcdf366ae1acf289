import { STRUCTS } from './abi.js';
import { CODERS } from './coders.js';
import type { Coder } from './fields.js';

type Structs = typeof STRUCTS;
export type StructName = keyof Structs;

type FieldValue<F> = F extends { kind: 'struct'; struct: infer N extends StructName }
  ? Struct<N>
  : F extends { kind: 'bytes' }
    ? Uint8Array
    : F extends { kind: 'u64' | 's64'; length: number }
      ? bigint[]
      : F extends { kind: 'u64' | 's64' }
        ? bigint
        : F extends { length: number }
          ? number[]
          : number;

/** A KVM structure as an object: the kernel's field names, bigint for 64-bit fields, Uint8Array for byte arrays. */
export type Struct<N extends StructName> = {
  -readonly [F in keyof Structs[N]['fields']]: FieldValue<Structs[N]['fields'][F]>;
};

export const sizeOf = (name: StructName): number => STRUCTS[name].size;

/** Reads a structure at `offset`. */
export function decode<N extends StructName>(name: N, bytes: Uint8Array, offset = 0): Struct<N> {
  return coderOf(name).decode(viewOf(bytes), offset);
}

/** Reads `count` structures that follow one another from `offset` on. */
export function decodeArray<N extends StructName>(
  name: N,
  count: number,
  bytes: Uint8Array,
  offset: number,
): Struct<N>[] {
  const [coder, view, size] = [coderOf(name), viewOf(bytes), sizeOf(name)];
  return Array.from({ length: count }, (_, i) => coder.decode(view, offset + i * size));
}

/**
 * Writes a structure at `offset`; bytes that no field names stay as they are.
 *
 * @throws VmmError code "INVALID_ARGUMENT" naming the field that is missing, of the wrong type or out of range.
 */
export function encode<N extends StructName>(name: N, value: Struct<N>, bytes: Uint8Array, offset = 0): void {
  coderOf(name).encode(value, viewOf(bytes), offset);
}

/** Writes structures one after another from `offset` on. @throws VmmError as {@link encode} does. */
export function encodeArray<N extends StructName>(
  name: N,
  values: readonly Struct<N>[],
  bytes: Uint8Array,
  offset: number,
): void {
  const [coder, view, size] = [coderOf(name), viewOf(bytes), sizeOf(name)];
  values.forEach((value, i) => coder.encode(value, view, offset + i * size));
}

const coderOf = <N extends StructName>(name: N) => CODERS[name] as Coder<Struct<N>>;
const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

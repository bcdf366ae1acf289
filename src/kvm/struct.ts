import { VmmError } from '../errors.js';
import { STRUCTS } from './abi.js';

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

interface Field {
  offset: number;
  kind: string;
  length?: number;
  struct?: StructName;
}

export const sizeOf = (name: StructName): number => STRUCTS[name].size;

/** Reads a structure at `offset`. */
export function decode<N extends StructName>(name: N, bytes: Uint8Array, offset = 0): Struct<N> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const result: Record<string, unknown> = {};
  for (const [key, field] of Object.entries<Field>(STRUCTS[name].fields)) {
    const at = offset + field.offset;
    if (field.kind === 'struct') result[key] = decode(field.struct!, bytes, at);
    else if (field.kind === 'bytes') result[key] = bytes.slice(at, at + field.length!);
    else if (field.length === undefined) result[key] = readInteger(view, at, field.kind);
    else {
      const step = widthOf(field.kind);
      result[key] = Array.from({ length: field.length }, (_, i) => readInteger(view, at + i * step, field.kind));
    }
  }
  return result as Struct<N>;
}

/**
 * Writes a structure at `offset`; bytes that no field names stay as they are.
 *
 * @throws VmmError code "INVALID_ARGUMENT" naming the field that is missing, of the wrong type or out of range.
 */
export function encode<N extends StructName>(name: N, value: Struct<N>, bytes: Uint8Array, offset = 0): void {
  if (typeof value !== 'object' || value === null) throw invalid(name, 'an object');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (const [key, field] of Object.entries<Field>(STRUCTS[name].fields)) {
    const at = offset + field.offset;
    const path = `${name}.${key}`;
    const item = (value as Record<string, unknown>)[key];
    if (field.kind === 'struct') encode(field.struct!, item as Struct<StructName>, bytes, at);
    else if (field.kind === 'bytes') {
      if (!(item instanceof Uint8Array) || item.byteLength !== field.length) {
        throw invalid(path, `a Uint8Array of ${field.length} bytes`);
      }
      bytes.set(item, at);
    } else if (field.length === undefined) writeInteger(view, at, field.kind, item, path);
    else {
      if (!Array.isArray(item) || item.length !== field.length) throw invalid(path, `an array of ${field.length}`);
      const step = widthOf(field.kind);
      item.forEach((element, i) => writeInteger(view, at + i * step, field.kind, element, `${path}[${i}]`));
    }
  }
}

const widthOf = (kind: string) => Number(kind.slice(1)) / 8;

function readInteger(view: DataView, at: number, kind: string): number | bigint {
  switch (kind) {
    case 'u8':
      return view.getUint8(at);
    case 'u16':
      return view.getUint16(at, true);
    case 'u32':
      return view.getUint32(at, true);
    case 's32':
      return view.getInt32(at, true);
    case 's64':
      return view.getBigInt64(at, true);
    default:
      return view.getBigUint64(at, true);
  }
}

function writeInteger(view: DataView, at: number, kind: string, value: unknown, path: string): void {
  const bits = Number(kind.slice(1));
  const signed = kind.startsWith('s');
  if (bits === 64) {
    const low = signed ? -(2n ** 63n) : 0n;
    if (typeof value !== 'bigint' || value < low || value >= low + 2n ** 64n) throw invalid(path, `a bigint (${kind})`);
    view.setBigUint64(at, BigInt.asUintN(64, value), true);
    return;
  }
  const low = signed ? -(2 ** (bits - 1)) : 0;
  if (!Number.isInteger(value) || (value as number) < low || (value as number) >= low + 2 ** bits) {
    throw invalid(path, `an integer (${kind})`);
  }
  if (bits === 8) view.setUint8(at, value as number);
  else if (bits === 16) view.setUint16(at, value as number, true);
  else view.setUint32(at, value as number, true);
}

const invalid = (path: string, expected: string) => new VmmError('INVALID_ARGUMENT', `${path} must be ${expected}`);

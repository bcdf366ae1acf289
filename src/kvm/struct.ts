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

/** A field of {@link STRUCTS} with what coding it needs at hand: a vCPU's life begins with hundreds of them. */
interface Field {
  key: string;
  offset: number;
  kind: string;
  /** Of an array, or bytes. */
  length: number | undefined;
  /** Bytes of an integer. */
  width: number;
  struct: Layout | undefined;
}

interface Layout {
  name: StructName;
  fields: readonly Field[];
}

const layouts = new Map<StructName, Layout>();

function layoutOf(name: StructName): Layout {
  let layout = layouts.get(name);
  if (!layout) {
    const given = Object.entries<{ offset: number; kind: string; length?: number; struct?: StructName }>(
      STRUCTS[name].fields,
    );
    const fields = given.map(([key, { offset, kind, length, struct }]) => ({
      ...{ key, offset, kind, length },
      width: Number(kind.slice(1)) / 8,
      struct: struct && layoutOf(struct),
    }));
    layout = { name, fields };
    layouts.set(name, layout);
  }
  return layout;
}

export const sizeOf = (name: StructName): number => STRUCTS[name].size;

/** Reads a structure at `offset`. */
export function decode<N extends StructName>(name: N, bytes: Uint8Array, offset = 0): Struct<N> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return decodeFields(layoutOf(name), view, bytes, offset) as Struct<N>;
}

function decodeFields(layout: Layout, view: DataView, bytes: Uint8Array, offset: number): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  for (const { key, offset: fieldOffset, kind, length, width, struct } of layout.fields) {
    const at = offset + fieldOffset;
    if (struct) result[key] = decodeFields(struct, view, bytes, at);
    else if (kind === 'bytes') result[key] = bytes.slice(at, at + length!);
    else if (length === undefined) result[key] = readInteger(view, at, kind);
    else result[key] = Array.from({ length }, (_, i) => readInteger(view, at + i * width, kind));
  }
  return result;
}

/**
 * Writes a structure at `offset`; bytes that no field names stay as they are.
 *
 * @throws VmmError code "INVALID_ARGUMENT" naming the field that is missing, of the wrong type or out of range.
 */
export function encode<N extends StructName>(name: N, value: Struct<N>, bytes: Uint8Array, offset = 0): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  encodeFields(layoutOf(name), value, view, bytes, offset);
}

function encodeFields(layout: Layout, value: unknown, view: DataView, bytes: Uint8Array, offset: number): void {
  const { name, fields } = layout;
  if (typeof value !== 'object' || value === null) throw invalid(name, 'an object');
  for (const { key, offset: fieldOffset, kind, length, width, struct } of fields) {
    const at = offset + fieldOffset;
    const item = (value as Record<string, unknown>)[key];
    if (struct) encodeFields(struct, item, view, bytes, at);
    else if (kind === 'bytes') {
      if (!(item instanceof Uint8Array) || item.byteLength !== length) {
        throw invalid(`${name}.${key}`, `a Uint8Array of ${length} bytes`);
      }
      bytes.set(item, at);
    } else if (length === undefined) {
      if (!writeInteger(view, at, kind, item)) throw invalidInteger(`${name}.${key}`, kind);
    } else {
      if (!Array.isArray(item) || item.length !== length) throw invalid(`${name}.${key}`, `an array of ${length}`);
      for (let i = 0; i < length; i++) {
        if (!writeInteger(view, at + i * width, kind, item[i])) throw invalidInteger(`${name}.${key}[${i}]`, kind);
      }
    }
  }
}

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

/** @returns Whether the value is one of the kind; if not, nothing is written. */
function writeInteger(view: DataView, at: number, kind: string, value: unknown): boolean {
  switch (kind) {
    case 'u8':
      if (!isInteger(value, 0, 0xff)) return false;
      view.setUint8(at, value);
      return true;
    case 'u16':
      if (!isInteger(value, 0, 0xffff)) return false;
      view.setUint16(at, value, true);
      return true;
    case 'u32':
      if (!isInteger(value, 0, 0xffff_ffff)) return false;
      view.setUint32(at, value, true);
      return true;
    case 's32':
      if (!isInteger(value, -0x8000_0000, 0x7fff_ffff)) return false;
      view.setInt32(at, value, true);
      return true;
    case 's64':
      if (typeof value !== 'bigint' || BigInt.asIntN(64, value) !== value) return false;
      view.setBigInt64(at, value, true);
      return true;
    default:
      if (typeof value !== 'bigint' || BigInt.asUintN(64, value) !== value) return false;
      view.setBigUint64(at, value, true);
      return true;
  }
}

const isInteger = (value: unknown, low: number, high: number): value is number =>
  Number.isInteger(value) && (value as number) >= low && (value as number) <= high;

const invalid = (path: string, expected: string) => new VmmError('INVALID_ARGUMENT', `${path} must be ${expected}`);
const invalidInteger = (path: string, kind: string) =>
  invalid(path, kind.endsWith('64') ? `a bigint (${kind})` : `an integer (${kind})`);

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

interface IntegerKind {
  bytes: number;
  read(view: DataView, at: number): number | bigint;
  /** @returns Whether the value is one of the kind; if not, nothing is written. */
  write(view: DataView, at: number, value: unknown): boolean;
}

const INTEGER_KINDS: Readonly<Record<string, IntegerKind>> = {
  u8: {
    bytes: 1,
    read: (view, at) => view.getUint8(at),
    write(view, at, value) {
      if (typeof value !== 'number' || (value & 0xff) !== value) return false;
      view.setUint8(at, value);
      return true;
    },
  },
  u16: {
    bytes: 2,
    read: (view, at) => view.getUint16(at, true),
    write(view, at, value) {
      if (typeof value !== 'number' || (value & 0xffff) !== value) return false;
      view.setUint16(at, value, true);
      return true;
    },
  },
  u32: {
    bytes: 4,
    read: (view, at) => view.getUint32(at, true),
    write(view, at, value) {
      if (typeof value !== 'number' || value >>> 0 !== value) return false;
      view.setUint32(at, value, true);
      return true;
    },
  },
  s32: {
    bytes: 4,
    read: (view, at) => view.getInt32(at, true),
    write(view, at, value) {
      if (typeof value !== 'number' || (value | 0) !== value) return false;
      view.setInt32(at, value, true);
      return true;
    },
  },
  u64: {
    bytes: 8,
    read: (view, at) => view.getBigUint64(at, true),
    write(view, at, value) {
      if (typeof value !== 'bigint' || BigInt.asUintN(64, value) !== value) return false;
      view.setBigUint64(at, value, true);
      return true;
    },
  },
  s64: {
    bytes: 8,
    read: (view, at) => view.getBigInt64(at, true),
    write(view, at, value) {
      if (typeof value !== 'bigint' || BigInt.asIntN(64, value) !== value) return false;
      view.setBigInt64(at, value, true);
      return true;
    },
  },
};

/** A field of {@link STRUCTS} with what coding it needs at hand: a vCPU's life begins with hundreds of them. */
interface Field {
  key: string;
  offset: number;
  kind: string;
  /** Of an array, or bytes; else 0. */
  length: number;
  /** Of an integer, or the integers of an array. */
  integer: IntegerKind;
  struct: Layout | undefined;
}

interface Layout {
  name: StructName;
  fields: readonly Field[];
  /** Has every key: a copy of it that is filled takes a third of the time of an object that grows. */
  template: Readonly<Record<string, unknown>>;
}

const layouts = new Map<StructName, Layout>();

function layoutOf(name: StructName): Layout {
  let layout = layouts.get(name);
  if (!layout) {
    const given = Object.entries<{ offset: number; kind: string; length?: number; struct?: StructName }>(
      STRUCTS[name].fields,
    );
    // Of one hidden class, which every use of a field relies on: each key is of one representation for all.
    const fields = given.map(([key, { offset, kind, length = 0, struct }]) => {
      const field: Field = { key, offset, kind, length, integer: INTEGER_KINDS[kind], struct: undefined };
      if (struct) field.struct = layoutOf(struct);
      return field;
    });
    layout = { name, fields, template: Object.fromEntries(given.map(([key]) => [key, undefined])) };
    layouts.set(name, layout);
  }
  return layout;
}

export const sizeOf = (name: StructName): number => STRUCTS[name].size;

/** Reads a structure at `offset`. */
export function decode<N extends StructName>(name: N, bytes: Uint8Array, offset = 0): Struct<N> {
  return decodeFields(layoutOf(name), viewOf(bytes), bytes, offset) as Struct<N>;
}

/** Reads `count` structures that follow one another from `offset` on. */
export function decodeArray<N extends StructName>(
  name: N,
  count: number,
  bytes: Uint8Array,
  offset: number,
): Struct<N>[] {
  const [layout, view, size] = [layoutOf(name), viewOf(bytes), sizeOf(name)];
  return Array.from({ length: count }, (_, i) => decodeFields(layout, view, bytes, offset + i * size) as Struct<N>);
}

function decodeFields(layout: Layout, view: DataView, bytes: Uint8Array, offset: number): Record<string, unknown> {
  const result = { ...layout.template };
  for (const { key, offset: fieldOffset, kind, length, integer, struct } of layout.fields) {
    const at = offset + fieldOffset;
    if (struct) result[key] = decodeFields(struct, view, bytes, at);
    else if (kind === 'bytes') result[key] = bytes.slice(at, at + length);
    else if (length === 0) result[key] = integer.read(view, at);
    else result[key] = Array.from({ length }, (_, i) => integer.read(view, at + i * integer.bytes));
  }
  return result;
}

/**
 * Writes a structure at `offset`; bytes that no field names stay as they are.
 *
 * @throws VmmError code "INVALID_ARGUMENT" naming the field that is missing, of the wrong type or out of range.
 */
export function encode<N extends StructName>(name: N, value: Struct<N>, bytes: Uint8Array, offset = 0): void {
  encodeFields(layoutOf(name), value, viewOf(bytes), bytes, offset);
}

/** Writes structures one after another from `offset` on. @throws VmmError as {@link encode} does. */
export function encodeArray<N extends StructName>(
  name: N,
  values: readonly Struct<N>[],
  bytes: Uint8Array,
  offset: number,
): void {
  const [layout, view, size] = [layoutOf(name), viewOf(bytes), sizeOf(name)];
  values.forEach((value, i) => encodeFields(layout, value, view, bytes, offset + i * size));
}

function encodeFields(layout: Layout, value: unknown, view: DataView, bytes: Uint8Array, offset: number): void {
  const { name, fields } = layout;
  if (typeof value !== 'object' || value === null) throw invalid(name, 'an object');
  for (const { key, offset: fieldOffset, kind, length, integer, struct } of fields) {
    const at = offset + fieldOffset;
    const item = (value as Record<string, unknown>)[key];
    if (struct) encodeFields(struct, item, view, bytes, at);
    else if (kind === 'bytes') {
      if (!(item instanceof Uint8Array) || item.byteLength !== length) {
        throw invalid(`${name}.${key}`, `a Uint8Array of ${length} bytes`);
      }
      bytes.set(item, at);
    } else if (length === 0) {
      if (!integer.write(view, at, item)) throw invalidInteger(`${name}.${key}`, kind);
    } else {
      if (!Array.isArray(item) || item.length !== length) throw invalid(`${name}.${key}`, `an array of ${length}`);
      for (let i = 0; i < length; i++) {
        if (!integer.write(view, at + i * integer.bytes, item[i])) throw invalidInteger(`${name}.${key}[${i}]`, kind);
      }
    }
  }
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const invalid = (path: string, expected: string) => new VmmError('INVALID_ARGUMENT', `${path} must be ${expected}`);
const invalidInteger = (path: string, kind: string) =>
  invalid(path, kind.endsWith('64') ? `a bigint (${kind})` : `an integer (${kind})`);

/**
 * Encodes AML, the byte code of ACPI tables, as far as describing devices needs it (ACPI 6.5, chapter 20). Every function
 * returns the bytes of one term; terms are composed by nesting.
 */
export type Aml = Uint8Array;

const OP = {
  ZERO: 0x00,
  ONE: 0x01,
  NAME: 0x08,
  BYTE: 0x0a,
  WORD: 0x0b,
  DWORD: 0x0c,
  STRING: 0x0d,
  QWORD: 0x0e,
  SCOPE: 0x10,
  BUFFER: 0x11,
  PACKAGE: 0x12,
  METHOD: 0x14,
  ARG0: 0x68,
  NOTIFY: 0x86,
  LEQUAL: 0x93,
  IF: 0xa0,
  EXT: 0x5b,
  EXT_DEVICE: 0x82,
} as const;

/** An integer in its shortest form. @param value 0 to 2^64 - 1. */
export function integer(value: number | bigint): Aml {
  const big = BigInt(value);
  if (big === 0n) return bytes(OP.ZERO);
  if (big === 1n) return bytes(OP.ONE);
  if (big <= 0xffn) return concat(bytes(OP.BYTE), littleEndian(big, 1));
  if (big <= 0xffffn) return concat(bytes(OP.WORD), littleEndian(big, 2));
  if (big <= 0xffffffffn) return concat(bytes(OP.DWORD), littleEndian(big, 4));
  return concat(bytes(OP.QWORD), littleEndian(big, 8));
}

/** A string; ASCII without NUL. */
export function string(text: string): Aml {
  return concat(bytes(OP.STRING), ascii(text), bytes(0));
}

/** A compressed EISA ID such as `PNP0501`: three letters of 5 bits, four hex digits, big-endian (19.6.37). */
export function eisaId(id: string): Aml {
  const letter = (index: number) => id.charCodeAt(index) - 0x40;
  const value = ((letter(0) << 26) | (letter(1) << 21) | (letter(2) << 16) | parseInt(id.slice(3), 16)) >>> 0;
  const encoded = new Uint8Array(4);
  new DataView(encoded.buffer).setUint32(0, value, false);
  return concat(bytes(OP.DWORD), encoded);
}

/** `Name (path, value)` */
export function name(path: string, value: Aml): Aml {
  return concat(bytes(OP.NAME), nameString(path), value);
}

/** `Scope (path) { … }` */
export function scope(path: string, ...terms: Aml[]): Aml {
  return concat(bytes(OP.SCOPE), sized(nameString(path), ...terms));
}

/** `Device (path) { … }` */
export function device(path: string, ...terms: Aml[]): Aml {
  return concat(bytes(OP.EXT, OP.EXT_DEVICE), sized(nameString(path), ...terms));
}

/** `Package () { … }` of up to 255 elements. */
export function packageOf(...elements: Aml[]): Aml {
  return concat(bytes(OP.PACKAGE), sized(bytes(elements.length), ...elements));
}

/** `Method (path, argumentCount, Serialized) { … }` */
export function method(path: string, argumentCount: number, ...terms: Aml[]): Aml {
  const SERIALIZED = 1 << 3;
  return concat(bytes(OP.METHOD), sized(nameString(path), bytes(argumentCount | SERIALIZED), ...terms));
}

/** `If (Arg0 == value) { … }` */
export function ifArg0Equals(value: number, ...terms: Aml[]): Aml {
  return concat(bytes(OP.IF), sized(bytes(OP.LEQUAL, OP.ARG0), integer(value), ...terms));
}

/** `Notify (path, value)` */
export function notify(path: string, value: number): Aml {
  return concat(bytes(OP.NOTIFY), nameString(path), integer(value));
}

/** `ResourceTemplate () { … }` of the descriptors below. */
export function resourceTemplate(...descriptors: Aml[]): Aml {
  const END_TAG = bytes(0x79, 0); // checksum 0: not checked
  const content = concat(...descriptors, END_TAG);
  return concat(bytes(OP.BUFFER), sized(integer(content.length), content));
}

/** `IO (Decode16, port, port, 1, count)` (6.4.2.5) */
export function ioPorts(port: number, count: number): Aml {
  const DECODE_16 = 1;
  return concat(bytes(0x47, DECODE_16), littleEndian(port, 2), littleEndian(port, 2), bytes(1, count));
}

/** `IRQNoFlags () {irq}`: an ISA interrupt, edge, active high (6.4.2.1) */
export function isaIrq(irq: number): Aml {
  return concat(bytes(0x22), littleEndian(1 << irq, 2));
}

/** `Memory32Fixed (ReadWrite, gpa, sizeBytes)` (6.4.3.4) */
export function memory32(gpa: number, sizeBytes: number): Aml {
  const WRITABLE = 1;
  return concat(bytes(0x86), littleEndian(9, 2), bytes(WRITABLE), littleEndian(gpa, 4), littleEndian(sizeBytes, 4));
}

/** `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}` (6.4.3.6) */
export function edgeInterrupt(gsi: number): Aml {
  const CONSUMER = 1;
  const EDGE = 1 << 1;
  return concat(bytes(0x89), littleEndian(6, 2), bytes(CONSUMER | EDGE, 1), littleEndian(gsi, 4));
}

/** What a bus passes on to the devices behind it, as a resource of the producer's kind with fixed ends. */
const PRODUCED = 0x0c;

/** `WordBusNumber (ResourceProducer, …, first, last)` (6.4.3.5.3) */
export function busNumbers(first: number, last: number): Aml {
  return addressSpace(0x88, 2, 2, 0, first, last - first + 1);
}

/** `WordIO (ResourceProducer, …, EntireRange, base, base + count - 1)` (6.4.3.5.3) */
export function portWindow(base: number, count: number): Aml {
  const ENTIRE_RANGE = 3;
  return addressSpace(0x88, 2, 1, ENTIRE_RANGE, base, count);
}

/**
 * `DWordMemory` or, where it is not wholly below 4 GiB, `QWordMemory (ResourceProducer, …, NonCacheable, ReadWrite, …)`
 * (6.4.3.5.1 and .2).
 */
export function memoryWindow(base: number, sizeBytes: number): Aml {
  const READ_WRITE = 1;
  return base + sizeBytes <= 2 ** 32
    ? addressSpace(0x87, 4, 0, READ_WRITE, base, sizeBytes)
    : addressSpace(0x8a, 8, 0, READ_WRITE, base, sizeBytes);
}

/** Header, then granularity, minimum, maximum, translation offset and length of `width` bytes each (6.4.3.5). */
function addressSpace(tag: number, width: number, type: number, flags: number, base: number, length: number): Aml {
  const fields = [0, base, base + length - 1, 0, length].map((value) => littleEndian(value, width));
  return concat(bytes(tag), littleEndian(3 + 5 * width, 2), bytes(type, PRODUCED, flags), ...fields);
}

export function concat(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** A name or path of segments of one to four characters, `\\` for the root (20.2.2). */
function nameString(path: string): Aml {
  const root = path.startsWith('\\') ? bytes(0x5c) : bytes();
  const segments = path
    .replace(/^\\/, '')
    .split('.')
    .map((segment) => ascii(segment.padEnd(4, '_')));
  const prefix = segments.length === 1 ? bytes() : segments.length === 2 ? bytes(0x2e) : bytes(0x2f, segments.length);
  return concat(root, prefix, ...segments);
}

/** PkgLength, which counts itself, then the content (20.2.4). */
function sized(...parts: Aml[]): Aml {
  const content = concat(...parts);
  if (content.length + 1 < 1 << 6) return concat(bytes(content.length + 1), content);
  const followBytes = content.length + 2 < 1 << 12 ? 1 : content.length + 3 < 1 << 20 ? 2 : 3;
  const total = content.length + 1 + followBytes;
  return concat(bytes((followBytes << 6) | (total & 0xf)), littleEndian(total >>> 4, followBytes), content);
}

function littleEndian(value: number | bigint, size: number): Aml {
  const big = BigInt(value);
  return Uint8Array.from({ length: size }, (_, index) => Number((big >> BigInt(8 * index)) & 0xffn));
}

const bytes = (...values: number[]) => Uint8Array.from(values);
const ascii = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));

/**
 * Writes src/kvm/coders.ts from the fields in src/kvm/abi.ts: for each structure the code that reads and writes it,
 * field by field. A table that is interpreted would do, but a vCPU's life begins with 800 fields. `npm run generate`.
 *
 *   tsx scripts/generate-kvm-coders.ts [FILE]
 */
import { fileURLToPath } from 'node:url';
import { STRUCTS } from '../src/kvm/abi.js';
import { writeFormatted } from './write-formatted.js';

interface Field {
  offset: number;
  kind: string;
  length?: number;
  struct?: string;
}

const ACCESS: Record<string, string> = {
  u8: 'Uint8',
  u16: 'Uint16',
  u32: 'Uint32',
  s32: 'Int32',
  u64: 'BigUint64',
  s64: 'BigInt64',
};

const helpers = new Set(['requireObject']);
const helper = (name: string) => (helpers.add(name), name);
/** The structures' coders call each other: a constant each, as a property of a table is looked up at every call. */
const constant = (struct: string) => struct.replaceAll('.', '_');

function get(kind: string, at: string): string {
  return `view.get${ACCESS[kind]}(${at}${kind === 'u8' ? '' : ', true'})`;
}

function set(kind: string, at: string, value: string, path: string): string {
  return `view.set${ACCESS[kind]}(${at}, ${helper(kind)}(${value}, ${path})${kind === 'u8' ? '' : ', true'})`;
}

const place = (offset: number) => (offset === 0 ? 'at' : `at + ${offset}`);

function decoded({ offset, kind, length, struct }: Field): string {
  if (struct !== undefined) return `${constant(struct)}.decode(view, ${place(offset)})`;
  if (kind === 'bytes') return `${helper('getBytes')}(view, ${place(offset)}, ${length})`;
  if (length === undefined) return get(kind, place(offset));
  return `${helper('getArray')}(${length}, (i) => ${get(kind, element(offset, kind))})`;
}

function encoded(structure: string, name: string, { offset, kind, length, struct }: Field): string {
  const [value, path] = [`value.${name}`, `${structure}.${name}`];
  if (struct !== undefined) return `${constant(struct)}.encode(${value}, view, ${place(offset)})`;
  if (kind === 'bytes') return `${helper('setBytes')}(view, ${place(offset)}, ${value}, ${length}, '${path}')`;
  if (length === undefined) return set(kind, place(offset), value, `'${path}'`);
  const item = set(kind, element(offset, kind), 'item', `\`${path}[\${i}]\``);
  return `${helper('setArray')}(${value}, ${length}, '${path}', (item, i) => ${item})`;
}

const element = (offset: number, kind: string) => `${place(offset)} + i * ${Number(kind.slice(1)) / 8}`;

const coders = Object.entries(STRUCTS).map(([name, { fields }]) => {
  const given = Object.entries<Field>(fields);
  return `
const ${constant(name)}: Coder<Struct<'${name}'>> = {
  decode: (view, at) => ({
${given.map(([field, layout]) => `    ${field}: ${decoded(layout)},`).join('\n')}
  }),
  encode(value, view, at) {
    requireObject(value, '${name}');
${given.map(([field, layout]) => `    ${encoded(name, field, layout)};`).join('\n')}
  },
};
`;
});

const path = fileURLToPath(new URL('../src/kvm/coders.ts', import.meta.url));
const source = `/* Written by scripts/generate-kvm-coders.ts from STRUCTS in abi.ts; do not edit. */
import { ${[...helpers].sort().join(', ')}, type Coder } from './fields.js';
import type { Struct, StructName } from './struct.js';
${coders.join('')}
export const CODERS: { readonly [N in StructName]: Coder<Struct<N>> } = {
${Object.keys(STRUCTS)
  .map((name) => (name === constant(name) ? `  ${name},` : `  '${name}': ${constant(name)},`))
  .join('\n')}
};
`;
await writeFormatted(path, source, process.argv[2]);

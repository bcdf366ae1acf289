import { LAYOUT } from './abi.js';
import { decodeArray, encodeArray, sizeOf, type Struct } from './struct.js';

/** One CPUID leaf: `function` is EAX and `index` ECX on input; `flags` bit 0 says that the index counts. */
export type CpuidEntry = Struct<'kvm_cpuid_entry2'>;

const HEADER_BYTES = LAYOUT['kvm_cpuid2.entries'];
const ENTRY_BYTES = sizeOf('kvm_cpuid_entry2');

/** A struct kvm_cpuid2 with room for `capacity` entries; nent is the capacity, as KVM wants it for reading. */
export function encodeCpuid(entries: readonly CpuidEntry[], capacity: number): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + capacity * ENTRY_BYTES);
  new DataView(bytes.buffer).setUint32(0, capacity, true);
  encodeArray('kvm_cpuid_entry2', entries, bytes, HEADER_BYTES);
  return bytes;
}

export function decodeCpuid(bytes: Uint8Array): CpuidEntry[] {
  const count = new DataView(bytes.buffer).getUint32(0, true);
  return decodeArray('kvm_cpuid_entry2', count, bytes, HEADER_BYTES);
}

import { ConfigSpace, type BarDescription } from '../../../devices/pci/config-space.js';
import * as defs from '../../../devices/pci/defs.js';
import { VmmError } from '../../../errors.js';
import { LAST_CONFIG_OFFSET, type RemoteConnection } from './connection.js';

const HEADER_TYPE_MASK = 0x7f;
const CIS_POINTER = 0x28;
const MIN_GRANT = 0x3e;
const CACHE_LINE_SIZE = 0x0c;
const MSIX_TABLE = 4; // offsets into the MSI-X capability: table and pending bits, each with its BAR in the low bits
const MSIX_PENDING = 8;
const BAR_INDEX_MASK = 0x7;
const CAPABILITIES_MAX = 48;

/** Bytes of a BAR that a guest is kept from. */
export interface HiddenRange {
  bar: number;
  start: number;
  end: number;
}

export interface RemoteConfig {
  /** What the guest sees: its BARs and command register; all else that changes is fetched when it is read. */
  config: ConfigSpace;
  /** Where MSI-X would be, which QEMU serves with accesses of certain sizes only, and ends itself on others. */
  hidden: readonly HiddenRange[];
}

/**
 * Makes a configuration space of a remote device's, which must be as after its reset, and keeps the two in step.
 *
 * Shown are the header and the vendor's capabilities. Hidden: message-signalled interrupts, because a remote device has its
 * interrupt pin alone; PCI Express, power management and what else could reset or unmap the device behind our back, upon
 * which an access to a BAR would end QEMU; the expansion ROM; and everything past the first 256 bytes.
 *
 * @param access Runs an access; undefined once the device is lost, whose space reads as all ones.
 * @throws VmmError as the connection does; code "INVALID_ARGUMENT" for a bridge, or BARs that cannot be.
 */
export function remoteConfig(
  remote: RemoteConnection,
  access: <T>(what: (remote: RemoteConnection) => T) => T | undefined,
): RemoteConfig {
  const read = (offset: number, size: 1 | 2 | 4) => remote.readConfig(offset, size);
  if (read(defs.HEADER_TYPE, 1) & HEADER_TYPE_MASK) {
    throw new VmmError('INVALID_ARGUMENT', 'it is a PCI bridge; give a device');
  }
  const config = new ConfigSpace({
    vendorId: read(defs.VENDOR_ID, 2),
    deviceId: read(defs.DEVICE_ID, 2),
    classCode: read(defs.REVISION_ID, 4) >>> 8,
    revision: read(defs.REVISION_ID, 1),
    subsystemVendorId: read(defs.SUBSYSTEM_VENDOR_ID, 2),
    subsystemId: read(defs.SUBSYSTEM_ID, 2),
    interruptPin: read(defs.INTERRUPT_PIN, 1),
    bars: sizeBars(remote),
  });

  // By byte: whether it is the device's to read, and to write.
  const foreign = new Uint8Array(defs.CONVENTIONAL_BYTES);
  foreign.fill(1, defs.STATUS, defs.STATUS + 2);
  foreign.fill(1, CACHE_LINE_SIZE, CACHE_LINE_SIZE + 2);
  foreign.fill(1, CIS_POINTER, CIS_POINTER + 4);
  foreign.fill(1, MIN_GRANT, MIN_GRANT + 2);
  foreign.fill(1, defs.HEADER_BYTES);
  const { shown, hidden } = capabilities(remote, foreign);
  const writable = Uint8Array.from(foreign);
  writable.fill(1, defs.COMMAND, defs.COMMAND + 2);
  writable.fill(1, defs.BASE_ADDRESS_REGISTERS, CIS_POINTER);
  writable.fill(0, LAST_CONFIG_OFFSET + 1);

  const shownStatus = shown.size > 0 ? defs.STATUS_CAPABILITIES : 0;
  config.watch(0, defs.FUNCTION_CONFIG_BYTES, {
    beforeRead: (offset, size) => {
      const isLost = access(() => true) === undefined;
      let word: { at: number; value: number | undefined } | undefined;
      const fetch = (at: number): number => {
        const start = at & ~3;
        if (word?.at !== start) word = { at: start, value: access((device) => device.readConfig(start, 4)) };
        return word.value === undefined ? 0xff : (word.value >>> (8 * (at - start))) & 0xff;
      };
      for (let at = offset; at < Math.min(offset + size, defs.FUNCTION_CONFIG_BYTES); at++) {
        if (isLost) config.poke(at, 1, 0xff);
        else if (shown.has(at)) config.poke(at, 1, shown.get(at)!);
        else if (!foreign[at]) continue;
        else if (at === defs.STATUS) config.poke(at, 1, (fetch(at) & ~defs.STATUS_CAPABILITIES) | shownStatus);
        else config.poke(at, 1, fetch(at));
      }
    },
    afterWrite: (offset, size, value) => {
      const bytes = Array.from({ length: size }, (_, i) => writable[offset + i] === 1 && !shown.has(offset + i));
      if (bytes.every(Boolean)) access((device) => device.writeConfig(offset, size, value));
      else {
        bytes.forEach((isWritable, i) => {
          if (isWritable) access((device) => device.writeConfig(offset + i, 1, (value >>> (8 * i)) & 0xff));
        });
      }
    },
  });
  return { config, hidden };
}

/** Back to what {@link remoteConfig} began with: the device's own reset leaves its configuration space alone. */
export function clearConfig(remote: RemoteConnection): void {
  remote.writeConfig(defs.COMMAND, 2, 0);
  for (let i = 0; i < defs.BASE_ADDRESS_REGISTER_COUNT; i++) {
    remote.writeConfig(defs.BASE_ADDRESS_REGISTERS + 4 * i, 4, 0);
  }
}

/** PCI 3.0, 6.2.5.1: writes all ones, and sees which bits stay. */
function sizeBars(remote: RemoteConnection): (BarDescription | undefined)[] {
  const bars: (BarDescription | undefined)[] = [];
  const probe = (index: number) => {
    const at = defs.BASE_ADDRESS_REGISTERS + 4 * index;
    remote.writeConfig(at, 4, 0xffff_ffff);
    const bits = remote.readConfig(at, 4);
    remote.writeConfig(at, 4, 0);
    return bits;
  };
  for (let i = 0; i < defs.BASE_ADDRESS_REGISTER_COUNT; i++) {
    const bits = probe(i);
    if (bits === 0) {
      bars[i] = undefined;
    } else if (bits & defs.BAR_IO) {
      // The upper half may be hard-wired: there are 65,536 ports.
      bars[i] = { kind: 'io', sizeBytes: 2 ** 16 - (bits & 0xfffc) };
    } else {
      const is64 = (bits & defs.BAR_MEMORY_64) !== 0;
      const low = (bits & ~0xf) >>> 0;
      const high = is64 ? probe(i + 1) : 0;
      bars[i] = {
        kind: is64 ? 'memory64' : 'memory32',
        sizeBytes: low ? 2 ** 32 - low : (2 ** 32 - high) * 2 ** 32,
        prefetchable: (bits & defs.BAR_PREFETCHABLE) !== 0,
      };
      if (is64) bars[++i] = undefined;
    }
  }
  return bars;
}

/**
 * Goes through the device's capabilities, and takes those that are hidden out of `foreign`.
 *
 * @returns The bytes of the list as the guest sees it: the pointer to it, and each shown capability's ID and pointer.
 */
function capabilities(
  remote: RemoteConnection,
  foreign: Uint8Array,
): { shown: ReadonlyMap<number, number>; hidden: HiddenRange[] } {
  const shown = new Map<number, number>();
  const hidden: HiddenRange[] = [];
  if (!(remote.readConfig(defs.STATUS, 2) & defs.STATUS_CAPABILITIES)) return { shown, hidden };
  let pointer = defs.CAPABILITIES_POINTER;
  let at = remote.readConfig(pointer, 1) & ~3;
  for (let i = 0; at >= defs.HEADER_BYTES && at <= LAST_CONFIG_OFFSET && i < CAPABILITIES_MAX; i++) {
    const id = remote.readConfig(at, 1);
    if (id === defs.CAPABILITY_VENDOR) {
      shown
        .set(pointer, at)
        .set(at, id)
        .set(at + 1, 0);
      pointer = at + 1;
    } else {
      foreign.fill(0, at, at + capabilityBytes(remote, at, id));
      if (id === defs.CAPABILITY_MSIX) hidden.push(...msixRanges(remote, at));
    }
    at = remote.readConfig(at + 1, 1) & ~3;
  }
  return { shown, hidden };
}

/** How long capabilities are that say nothing of it themselves. */
function capabilityBytes(remote: RemoteConnection, at: number, id: number): number {
  switch (id) {
    case defs.CAPABILITY_POWER:
      return 8;
    case defs.CAPABILITY_MSI: {
      // 6.8.1: 64-bit addresses and masks for each vector make it longer.
      const control = remote.readConfig(at + 2, 2);
      return 10 + (control & 0x80 ? 4 : 0) + (control & 0x100 ? 10 : 0);
    }
    case defs.CAPABILITY_MSIX:
      return 12;
    case defs.CAPABILITY_EXPRESS:
      return 0x3c;
    default:
      return 8;
  }
}

function msixRanges(remote: RemoteConnection, at: number): HiddenRange[] {
  const vectors = (remote.readConfig(at + 2, 2) & 0x7ff) + 1;
  const range = (offset: number, bytes: number): HiddenRange => {
    const place = remote.readConfig(at + offset, 4);
    const start = (place & ~BAR_INDEX_MASK) >>> 0;
    return { bar: place & BAR_INDEX_MASK, start, end: start + bytes };
  };
  return [range(MSIX_TABLE, vectors * defs.MSIX_ENTRY_BYTES), range(MSIX_PENDING, 8 * Math.ceil(vectors / 64))];
}

import type { Blockdev } from './storage-daemon.js';

export type QemuProperties = Readonly<Record<string, string | number | boolean>>;

/** One device of QEMU's with what it stands on. */
export interface QemuDeviceDescription {
  /** QEMU's name of it, such as `nvme`. */
  device: string;
  props: QemuProperties;
  /** Trees of block drivers, each named by its `node-name`, for the property `drive`. */
  blockdevs: readonly Blockdev[];
  /** A network behind the device: `{ type: 'user' }` and what else `-netdev` takes. */
  netdev?: Readonly<Record<string, unknown>>;
  /** What a sound card plays on, as `-audiodev` takes it. Default: `{ driver: 'none' }`, nothing. */
  audiodev?: Readonly<Record<string, unknown>>;
  /** Devices on a bus of this one's: `scsi-hd` of a SCSI controller. */
  attached: readonly { device: string; props: QemuProperties }[];
}

/** QEMU's arguments for a device and all that it stands on. @param id Of the device; other ids begin with it. */
export function qemuPciArguments(
  id: string,
  { device, props, blockdevs, netdev, audiodev, attached }: QemuDeviceDescription,
): string[] {
  const network = netdev && { id: `${id}-netdev`, ...netdev };
  // Always one: a sound card without looks for the host's, and while it does so it answers nothing.
  const audio = { id: `${id}-audiodev`, ...(audiodev ?? { driver: 'none' }) };
  const own = { ...(network && { netdev: network.id }), ...(audiodev && { audiodev: audio.id }) };
  return [
    ...blockdevs.flatMap((blockdev) => ['-blockdev', JSON.stringify(blockdev)]),
    ...(network ? ['-netdev', JSON.stringify(network)] : []),
    ...['-audiodev', JSON.stringify(audio)],
    // An option ROM would be for firmware, and its file is in another package.
    ...deviceArguments(device, { id, romfile: '', ...own, ...props }),
    // QEMU looks for a bus at its latest device first.
    ...attached.flatMap((other) => deviceArguments(other.device, other.props)),
  ];
}

/** In a tree of block drivers, what names a node: this one, or one of its children. */
const NODE_KEYS: readonly string[] = ['node-name', 'file', 'backing', 'data-file', 'image', 'raw', 'children'];

/**
 * The same device, with other names for the block nodes it describes: several in one QEMU may each have a `disk`.
 *
 * @param prefix Up to 20 characters.
 */
export function withOwnNodes(prefix: string, description: QemuDeviceDescription): QemuDeviceDescription {
  const names = new Map<unknown, string>();
  const collect = (value: unknown) => {
    if (typeof value !== 'object' || value === null) return;
    const { 'node-name': name } = value as { 'node-name'?: unknown };
    if (name !== undefined) names.set(name, `${prefix}-node${names.size}`);
    Object.values(value).forEach(collect);
  };
  description.blockdevs.forEach(collect);
  const rename = (value: unknown, key: string): unknown => {
    if (Array.isArray(value)) return value.map((element) => rename(element, key));
    if (typeof value === 'object' && value !== null) {
      return Object.fromEntries(Object.entries(value).map(([inner, field]) => [inner, rename(field, inner)]));
    }
    return NODE_KEYS.includes(key) ? (names.get(value) ?? value) : value;
  };
  const withDrive = (props: QemuProperties): QemuProperties =>
    names.has(props['drive']) ? { ...props, drive: names.get(props['drive'])! } : props;
  return {
    ...description,
    props: withDrive(description.props),
    blockdevs: description.blockdevs.map((blockdev) => rename(blockdev, '') as Blockdev),
    attached: description.attached.map((other) => ({ ...other, props: withDrive(other.props) })),
  };
}

function deviceArguments(device: string, props: QemuProperties): string[] {
  const value = (given: string | number | boolean) =>
    typeof given === 'boolean' ? (given ? 'on' : 'off') : escapeComma(String(given));
  const properties = Object.entries(props).map(([name, given]) => `,${name}=${value(given)}`);
  return ['-device', `${device}${properties.join('')}`];
}

/** In a list of QEMU's, a comma of a value is two. */
export const escapeComma = (value: string) => value.replaceAll(',', ',,');

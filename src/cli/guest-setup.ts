import type { InitramfsFile } from '../guest/initramfs.js';

/** What a guest has beside its CPUs and memory, as far as its initramfs must know. */
export interface GuestDevices {
  console: 'serial' | 'virtio';
  drives: number;
  nets: number;
  /** Tags of shares by 9p. Default: none. */
  shares?: readonly string[];
  /** Tags of shares by virtio-fs. Default: none. */
  virtiofs?: readonly string[];
  rng: boolean;
  vsock?: boolean;
  balloon?: boolean;
  /** PCI devices of QEMU's. Default: none. */
  devices?: readonly { device: string; hasNetwork: boolean }[];
  transport: 'pci' | 'mmio';
}

/** What an initramfs needs to bring those devices up. */
export interface GuestSetup {
  modules: string[];
  files: InitramfsFile[];
  /** Shell, for before the command. */
  setup: string[];
}

const DHCP_SCRIPT = '/etc/udhcpc/default.script';

/** udhcpc decides nothing itself: it calls this with the lease in the environment, and with the prefix length as `mask`. */
const DHCP_LEASE = `#!/bin/sh
case $1 in
deconfig)
  ip link set "$interface" up
  ;;
bound | renew)
  ip address flush dev "$interface"
  ip address add "$ip/$mask" dev "$interface"
  for gateway in $router; do
    # Outside its own subnet where the host has an address of 32 bits.
    ip route replace "$gateway" dev "$interface"
    ip route replace default via "$gateway" dev "$interface"
    break
  done
  for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
  ;;
esac
`;

/** As much as Linux's client can have under way in one request. */
const MSIZE = 512_000;

/** Modules of Debian's generic kernel for devices of QEMU's; the driver of any other is the guest's own affair. */
const QEMU_DRIVERS: Readonly<Record<string, readonly string[]>> = {
  nvme: ['nvme', 'crc32c_generic', 'ext4'],
  lsi53c895a: ['sym53c8xx', 'sd_mod', 'crc32c_generic', 'ext4'],
  pvscsi: ['vmw_pvscsi', 'sd_mod', 'crc32c_generic', 'ext4'],
  e1000: ['e1000'],
  AC97: ['snd_intel8x0'],
};

/** Modules of Debian's kernels for these devices, DHCP on every network card, every share mounted at /mnt/TAG. */
export function guestSetup({
  console,
  drives,
  nets,
  shares = [],
  virtiofs = [],
  rng,
  balloon,
  vsock,
  devices = [],
  transport,
}: GuestDevices): GuestSetup {
  const modules: string[] = [];
  const setup: string[] = [];
  const anyShare = shares.length > 0 || virtiofs.length > 0;
  const any = console === 'virtio' || drives > 0 || nets > 0 || anyShare || rng || balloon || vsock;
  if (any) modules.push(`virtio_${transport}`);
  if (console === 'virtio') modules.push('virtio_console');
  // ext4 asks the kernel's crypto API for crc32c, by name: no dependency says so.
  if (drives > 0) modules.push('virtio_blk', 'crc32c_generic', 'ext4');
  if (shares.length > 0) modules.push('9pnet_virtio', '9p');
  if (virtiofs.length > 0) modules.push('virtiofs');
  if (rng) modules.push('virtio_rng');
  if (vsock) modules.push('vmw_vsock_virtio_transport');
  if (balloon) modules.push('virtio_balloon');
  for (const { device } of devices) modules.push(...(QEMU_DRIVERS[device] ?? []));
  const cards = nets + devices.filter(({ hasNetwork }) => hasNetwork).length;
  if (nets > 0) modules.push('virtio_net');
  // udhcpc speaks before there is an address: through a packet socket.
  if (cards > 0) modules.push('af_packet');

  const mount = (type: string, tag: string) =>
    setup.push(`mkdir -p /mnt/${tag}`, `mount -t ${type} ${tag} /mnt/${tag} || echo 'init: ${tag} was not mounted'`);
  for (const tag of shares) mount(`9p -o trans=virtio,version=9p2000.L,msize=${MSIZE}`, tag);
  for (const tag of virtiofs) mount('virtiofs', tag);
  if (cards > 0) setup.push('ip link set lo up');
  for (let card = 0; card < cards; card++) {
    setup.push(
      `ip link set eth${card} up`,
      `udhcpc -s ${DHCP_SCRIPT} -q -n -t 5 -T 1 -i eth${card} </dev/null >/dev/null 2>&1 || echo 'init: no address for eth${card} by DHCP'`,
    );
  }
  return {
    modules: [...new Set(modules)],
    files: cards > 0 ? [{ path: DHCP_SCRIPT, bytes: DHCP_LEASE, mode: 0o755 }] : [],
    setup,
  };
}

/** What a network's packets cost by what stands behind the card, beside QEMU's own virtio-net. */
import { fileURLToPath } from 'node:url';
import { findProgram } from '../../guest/debian.js';
import { chooseAccelerator } from '../../machine/accelerator.js';
import { runAlone } from '../alone.js';
import { Unavailable, type Benchmark, type Contender } from '../benchmark.js';
import { countExits } from '../host-cost.js';
import { loadImages, processLoad } from '../linux.js';
import { GUEST_ADDRESS, HOST_ADDRESS, PORT } from './net-addresses.js';
import { REQUEST_METRICS } from './requests.js';
import { SharedLoad } from './shared-load.js';

/** By name, as net-load.c calls them. */
const LOADS = { 'UDP there and back, 64 bytes': 'ping', 'TCP to the host': 'send', 'TCP to the guest': 'receive' };
const MODULES = ['virtio_pci', 'virtio_net', 'af_packet'];
const SETUP = [
  'ip link set lo up; ip link set eth0 up',
  `ip address add ${GUEST_ADDRESS}/24 dev eth0; ip route add default via ${HOST_ADDRESS}`,
].join('\n');
const ROUND_MS = { quick: 200, full: 1000 };
const GRACE_MS = 10_000;
/** A program of its own; with the ending that this file has. */
const MACHINE = fileURLToPath(new URL(`net-machine${import.meta.filename.slice(-3)}`, import.meta.url));

export const net: Benchmark = {
  name: 'devices/net',
  title: 'Network cards',
  description:
    'A Linux guest talks to a server on its host: datagrams one at a time, and TCP streams, whose requests are pieces of ' +
    "64 KiB. virtio-net in TypeScript on a tap interface and on passt; QEMU's on a tap interface, without vhost. Each " +
    'network is in a namespace of its own. Costs are those of a request, the server included, without what the guest itself uses.',
  metrics: REQUEST_METRICS,
  axis: { title: 'load', unit: 'count', places: Object.keys(LOADS) },
  floor: 'QEMU',
  operations: { quick: 1, full: 1 },
  rounds: { quick: 3, full: 11 },
  async contenders(context) {
    const { accel, reason } = chooseAccelerator('auto');
    if (accel === 'tcg') throw new Unavailable(`these devices need a KVM that runs Linux; ${reason}`);
    const [unshare, qemu, passt] = await Promise.all(['unshare', 'qemu-system-x86_64', 'passt'].map(findProgram));
    if (unshare === undefined) throw new Unavailable('a network namespace takes unshare(1), which is not installed');
    if (qemu === undefined) context.note('QEMU is not installed: there is nothing to compare with');
    if (passt === undefined) context.note('passt is not installed');
    if (!(await countExits())) context.note("exits are not counted: only root may read KVM's counters in debugfs");
    const images = await loadImages({ program: 'net-load', modules: MODULES, setup: SETUP }, context);
    const { kernel, initrd, program } = images;
    const namespace = process.getuid?.() === 0 ? ['--net'] : ['--user', '--map-root-user', '--net'];
    const machine = (kind: string, ...more: string[]) => {
      const args = [...process.execArgv, MACHINE, kind, kernel, initrd, program, ...more];
      return new SharedLoad(() => processLoad(unshare, [...namespace, process.execPath, ...args], GRACE_MS));
    };
    const all = [
      ...(qemu === undefined ? [] : [{ name: 'QEMU', guest: machine('qemu', qemu) }]),
      { name: 'tap', guest: machine('tap') },
      ...(passt === undefined ? [] : [{ name: 'passt', guest: machine('user') }]),
    ];
    const milliseconds = ROUND_MS[context.quick ? 'quick' : 'full'];
    return Object.values(LOADS).flatMap((load, at) =>
      all.map(({ name, guest }): Contender => ({
        name,
        at,
        isFloor: name === 'QEMU',
        open: () => guest.session(`${load} ${HOST_ADDRESS} ${PORT} ${milliseconds}`, images),
      })),
    );
  },
};

await runAlone(import.meta.filename, net);

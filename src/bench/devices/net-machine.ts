/**
 * `net-machine tap|user|qemu KERNEL INITRD PROGRAM [QEMU]`, in a network namespace of its own: makes a network, the server
 * in it, and a guest with a card on it; then each line on standard input goes to the guest, its answer to standard output.
 */
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import { findBusybox } from '../../guest/busybox.js';
import { guestLoad, processLoad, qemuLoad } from '../linux.js';
import { HOST_ADDRESS, GUEST_ADDRESS, PORT } from './net-addresses.js';

const INTERFACE = 'bench0';
const [kind, kernel, initrd, program, qemu] = process.argv.slice(2);

const busybox = await findBusybox();
const sh = (script: string) => execa(busybox, ['sh', '-c', script], { env: { busybox } });
await sh('$busybox ip link set lo up');
if (kind === 'user') {
  // passt gives the guest this address, and takes the gateway's for the host itself.
  await sh(`
    $busybox ip link add ${INTERFACE} type dummy && $busybox ip link set ${INTERFACE} up &&
    $busybox ip address add ${GUEST_ADDRESS}/24 dev ${INTERFACE} && $busybox ip route add default via ${HOST_ADDRESS}`);
} else {
  await sh(`
    $busybox tunctl -t ${INTERFACE} >&2 && $busybox ip link set ${INTERFACE} up &&
    $busybox ip address add ${HOST_ADDRESS}/24 dev ${INTERFACE}`);
}
const images = { kernel, initrd };
await using _server = await processLoad(program, ['serve', String(PORT)]);
await using guest = await (kind === 'qemu'
  ? qemuLoad(qemu, 'kvm', images, [
      ...['-netdev', `tap,id=net,ifname=${INTERFACE},script=no,downscript=no`],
      ...['-device', 'virtio-net-pci,netdev=net'],
    ])
  : guestLoad(images, {
      accel: 'kvm',
      memory: '256M',
      net: [kind === 'user' ? { type: 'user' } : { type: 'tap', name: INTERFACE }],
    }));
process.stdout.write('{}\n');
for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await guest.run(line))}\n`);
}

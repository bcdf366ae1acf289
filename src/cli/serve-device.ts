import { basename } from 'node:path';
import { serveDevice, type ServeDeviceOptions } from '../machine/serve-device.js';
import { say } from './output.js';
import { interruptible } from './signals.js';

/** What QEMU calls each device, and what it needs beside the socket. */
const QEMU_DEVICES: Readonly<Record<string, string>> = {
  blk: '-device vhost-user-blk-pci,chardev=dev',
  rng: '-device vhost-user-rng-pci,chardev=dev',
  vsock: '-device vhost-user-vsock-pci,chardev=dev',
  net: '-netdev vhost-user,id=net,chardev=dev -device virtio-net-pci,netdev=net',
};

/** `vmexit serve-device`. @throws Interrupted when a signal has ended it; nothing else does. */
export async function serve(options: ServeDeviceOptions): Promise<void> {
  await using served = await serveDevice(options);
  served.server.on('connect', () => say('a frontend is connected'));
  served.server.on('disconnect', (error) => say(`the frontend is gone: ${error.message}`));
  served.server.on('driverFailure', (reason) => say(`the guest's driver broke a rule: ${reason}`));
  say(`serving ${served.device.name} at ${basename(served.socket)}; for QEMU:`);
  say('  -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem');
  // QEMU's other devices do not come back.
  const reconnect = options.type === 'blk' ? ',reconnect=1' : '';
  say(`  -chardev socket,id=dev,path=${served.socket}${reconnect} ${QEMU_DEVICES[options.type] ?? ''}`);
  await interruptible((signal) => new Promise((_, reject) => signal.addEventListener('abort', reject)));
}

import { resolve } from 'node:path';
import * as z from 'zod';
import type { VsockSocket } from '../backends/local/vsock-socket.js';
import { parsePortForward } from '../backends/net/port-forward.js';
import type { VhostUserServer } from '../backends/vhost-user/server.js';
import type { VsockAcceptor } from '../devices/virtio/vsock/backend.js';
import { VmmError } from '../errors.js';
import type { VirtioDevice } from '../virtio/device.js';

/** Enough for guests of as many vCPUs: QEMU gives a disk as many queues as the guest has of those, and no fewer. */
const DEFAULT_QUEUES = 16;
/** Of a disk's queues in QEMU, whatever the device offers. */
const QEMU_QUEUE_SIZE = 128;

/** What to serve, and at which Unix socket. */
export type ServeDeviceOptions = {
  /** Path of the Unix socket to listen at. */
  socket: string;
} & (
  | {
      type: 'blk';
      /** A raw image or a block device. */
      path: string;
      readOnly?: boolean | undefined;
      /** Up to 20 printable ASCII characters. */
      serial?: string | undefined;
      /** The most queues that a frontend may use, 1 to 64. Default 16. */
      queues?: number | undefined;
    }
  | { type: 'rng' }
  | {
      type: 'vsock';
      /** The guest's context ID, 3 or more. */
      cid: number;
      /** As in `MicroVMOptions.vsock`. */
      udsPath?: string | undefined;
      /** Takes the guest's connections, before `udsPath` does. */
      onRequest?: VsockAcceptor | undefined;
    }
  | { type: 'net'; net: { type: 'user'; forwards?: readonly string[] | undefined } | { type: 'tap'; name: string } }
  /** Any virtio device, of your own class too. It stays yours. */
  | { type: 'device'; device: VirtioDevice }
);

const path = z.string().min(1);
const schema = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('blk'),
    socket: path,
    path,
    readOnly: z.boolean().default(false),
    serial: z.string().optional(),
    queues: z.number().int().default(DEFAULT_QUEUES),
  }),
  z.strictObject({ type: z.literal('rng'), socket: path }),
  z.strictObject({
    type: z.literal('vsock'),
    socket: path,
    cid: z.number().int(),
    udsPath: path.optional(),
    onRequest: z.custom<VsockAcceptor>((value) => typeof value === 'function').optional(),
  }),
  z.strictObject({
    type: z.literal('net'),
    socket: path,
    net: z.discriminatedUnion('type', [
      z.strictObject({ type: z.literal('user'), forwards: z.array(z.string()).default([]) }),
      z.strictObject({ type: z.literal('tap'), name: path }),
    ]),
  }),
  z.strictObject({
    type: z.literal('device'),
    socket: path,
    device: z.custom<VirtioDevice>((value) => typeof (value as VirtioDevice | null)?.activate === 'function'),
  }),
]);

/** A device that is being served. */
export interface ServedDevice extends AsyncDisposable {
  /** The absolute path of its socket. */
  readonly socket: string;
  readonly device: VirtioDevice;
  /** Events `connect`, and `disconnect` with why a frontend is gone. */
  readonly server: VhostUserServer;
  /** Ends the connection, gives back what was opened for the device, and removes the socket. Idempotent. */
  close(): Promise<void>;
}

/**
 * Serves a virtio device of this package to another program, by vhost-user: QEMU's `vhost-user-blk-pci` and the like, with
 * guest memory that can be shared (`memory-backend-memfd,share=on`).
 *
 * One frontend is served at a time, any number one after the other. When one comes back with its rings, as QEMU does after
 * this process was killed and started anew (`reconnect=1`), the device goes on with what was not answered.
 *
 * It runs on this thread's event loop, and keeps it alive until `close()`.
 *
 * @throws VmmError code "INVALID_ARGUMENT", "BUSY" where somebody listens at the socket or uses the image, "SYSCALL".
 */
export async function serveDevice(options: ServeDeviceOptions): Promise<ServedDevice> {
  const result = schema.safeParse(options);
  if (!result.success) {
    const problems = result.error.issues.map(({ path: at, message }) => `${at.join('.') || 'options'}: ${message}`);
    throw new VmmError('INVALID_ARGUMENT', problems.join('; '));
  }
  const socket = resolve(result.data.socket);
  const { VhostUserServer } = await import('../backends/vhost-user/server.js');
  const { device, close: closeBackend } = await openDevice(result.data);
  let server: VhostUserServer;
  try {
    server = new VhostUserServer(device, socket);
  } catch (error) {
    await closeBackend();
    throw error;
  }
  let closing: Promise<void> | undefined;
  const close = () => (closing ??= server.close().then(closeBackend));
  return { socket, device, server, close, [Symbol.asyncDispose]: close };
}

interface Opened {
  device: VirtioDevice;
  close: () => void | Promise<void>;
}

/** Loads what it makes: a program that serves no device shall not wait for the files. */
async function openDevice(options: z.output<typeof schema>): Promise<Opened> {
  switch (options.type) {
    case 'blk': {
      const { path: image, readOnly, serial, queues } = options;
      const { FileBackend } = await import('../backends/local/file.js');
      const { VirtioBlk } = await import('../devices/virtio/blk/blk.js');
      const backend = await FileBackend.open({ path: resolve(image), readOnly });
      const disk = { backend, readOnly, queues, leastQueueSize: QEMU_QUEUE_SIZE };
      return made(backend, () => new VirtioBlk({ ...disk, ...(serial !== undefined && { serial }) }));
    }
    case 'rng': {
      const { VirtioRng } = await import('../devices/virtio/rng/rng.js');
      return { device: new VirtioRng(), close: () => {} };
    }
    case 'net': {
      const { net } = options;
      const { openNetwork } = await import('./net-card.js');
      const { VirtioNet } = await import('../devices/virtio/net/net.js');
      const backend = await openNetwork(
        net.type === 'user' ? { ...net, forwards: net.forwards.map(parsePortForward) } : net,
      );
      return made(backend, () => new VirtioNet({ backend }));
    }
    case 'vsock': {
      const { cid, udsPath, onRequest } = options;
      const { VirtioVsock } = await import('../devices/virtio/vsock/vsock.js');
      let uds: VsockSocket | undefined;
      const device = new VirtioVsock({
        cid,
        onRequest: (request) => onRequest?.(request) || (uds?.offer(request) ?? false),
      });
      if (udsPath !== undefined) {
        const { VsockSocket } = await import('../backends/local/vsock-socket.js');
        uds = await VsockSocket.listen({ path: resolve(udsPath), connect: (port) => device.connect(port) });
      }
      return { device, close: () => uds?.close() };
    }
    case 'device':
      return { device: options.device, close: () => {} };
  }
}

async function made(backend: { close(): void | Promise<void> }, make: () => VirtioDevice): Promise<Opened> {
  try {
    return { device: make(), close: () => backend.close() };
  } catch (error) {
    await backend.close();
    throw error;
  }
}

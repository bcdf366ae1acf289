import type { NetBackend } from '../devices/virtio/net/backend.js';
import { VirtioNet } from '../devices/virtio/net/net.js';
import type { VmmError } from '../errors.js';
import type { NetConfig } from './machine.js';
import type { NetPort } from './net-port.js';

/** A network card of ours and the network behind it, which is closed when nothing uses the card any more. */
export interface NetCard {
  device: VirtioNet;
  backend: NetBackend;
}

/**
 * @param port Of a card of type `port`: the program's end.
 * @param onFailure The network broke down; the guest goes on without.
 * @throws VmmError as the backends do, and as {@link VirtioNet} does.
 */
export async function openNetCard(
  net: NetConfig,
  port: NetPort | undefined,
  onFailure: (error: VmmError) => void,
): Promise<NetCard> {
  const { mac, mtu, rateLimit } = net;
  const backend = await openNetwork(net, port);
  try {
    const device = new VirtioNet({
      backend,
      ...(mac !== undefined && { mac }),
      ...(mtu !== undefined && { mtu }),
      ...(rateLimit && { transmitLimit: rateLimit, receiveLimit: rateLimit }),
      onBackendFailure: onFailure,
    });
    return { device, backend };
  } catch (error) {
    await backend.close();
    throw error;
  }
}

/** @param port Of a network of type `port`: the program's end. */
export async function openNetwork(net: NetConfig, port?: NetPort): Promise<NetBackend> {
  const mtu = net.mtu === undefined ? {} : { mtu: net.mtu };
  switch (net.type) {
    case 'user': {
      const { UserNetwork } = await import('../backends/net/user.js');
      return UserNetwork.start({ forwards: net.forwards, ...mtu });
    }
    case 'tap': {
      const { TapNetwork } = await import('../backends/net/tap.js');
      return new TapNetwork({ ...net, ...mtu });
    }
    case 'port': {
      const { PortNetwork } = await import('../backends/net/port.js');
      const network = new PortNetwork(mtu);
      port?.attach(network);
      return network;
    }
  }
}

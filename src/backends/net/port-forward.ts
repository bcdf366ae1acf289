import { isIP } from 'node:net';
import { VmmError } from '../../errors.js';

/** A port of the host whose connections (or datagrams) reach the guest. */
export interface PortForward {
  hostPort: number;
  guestPort: number;
  /** Default: tcp. */
  protocol?: 'tcp' | 'udp';
  /** The host's address to listen on. Default: every one. */
  hostAddress?: string;
}

/**
 * Reads `[ADDRESS:]HOST:GUEST[/tcp|/udp]`, an IPv6 address in brackets.
 *
 * @throws VmmError code "INVALID_ARGUMENT"
 */
export function parsePortForward(text: string): PortForward {
  const match = /^(?:(?:\[([^\]]+)\]|([^:[\]]+)):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/.exec(text);
  if (!match) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      `port forward "${text}" is not understood; write HOST:GUEST, such as 8080:80, 127.0.0.1:8080:80 or 5353:53/udp`,
    );
  }
  const [, bracketed, plain, hostPort, guestPort, protocol] = match;
  const hostAddress = bracketed ?? plain;
  const forward: PortForward = {
    hostPort: Number(hostPort),
    guestPort: Number(guestPort),
    protocol: protocol === 'udp' ? 'udp' : 'tcp',
    ...(hostAddress !== undefined && { hostAddress }),
  };
  checkPortForward(forward);
  return forward;
}

/** @throws VmmError code "INVALID_ARGUMENT" */
export function checkPortForward({ hostPort, guestPort, protocol = 'tcp', hostAddress }: PortForward): void {
  for (const port of [hostPort, guestPort]) {
    if (!(Number.isInteger(port) && port >= 1 && port <= 65535)) {
      throw new VmmError('INVALID_ARGUMENT', `${port} is no port; give 1 to 65535`);
    }
  }
  if (protocol !== 'tcp' && protocol !== 'udp') {
    throw new VmmError('INVALID_ARGUMENT', `a port forward of ${String(protocol)} cannot be; give tcp or udp`);
  }
  if (hostAddress !== undefined && !isIP(hostAddress)) {
    throw new VmmError('INVALID_ARGUMENT', `"${hostAddress}" is no IP address to listen on`);
  }
}

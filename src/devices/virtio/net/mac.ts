import { randomBytes } from 'node:crypto';
import { VmmError } from '../../../errors.js';

/** @throws VmmError code "INVALID_ARGUMENT" unless it is the address of one station, as `52:54:00:12:34:56`. */
export function parseMac(text: string): Uint8Array {
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(text)) {
    throw new VmmError('INVALID_ARGUMENT', `"${text}" is no MAC address; write six bytes, such as 52:54:00:12:34:56`);
  }
  const mac = Uint8Array.from(text.split(':'), (byte) => parseInt(byte, 16));
  if (mac[0] & 1 || mac.every((byte) => byte === 0)) {
    throw new VmmError('INVALID_ARGUMENT', `${text} is not the address of one station; make the first byte even`);
  }
  return mac;
}

/** An address of nobody's: unicast, locally administered, in the range that virtual machines commonly use. */
export function randomMac(): Uint8Array {
  return Uint8Array.of(0x52, 0x54, 0x00, ...randomBytes(3));
}

export function formatMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

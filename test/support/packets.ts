/** Packets made by hand: Ethernet II, ARP (RFC 826), IPv4 (RFC 791), UDP (RFC 768), TCP (RFC 9293), DHCP (RFC 2131). */

export const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const macBytes = (mac: string) => Buffer.from(mac.replaceAll(':', ''), 'hex');
const ipBytes = (ip: string) => Buffer.from(ip.split('.').map(Number));
const ipText = (bytes: Uint8Array) => [...bytes].join('.');

export function ethernet(to: string, from: string, type: number, payload: Uint8Array): Buffer {
  return Buffer.concat([macBytes(to), macBytes(from), be16(type), payload]);
}

export function arp(operation: 1 | 2, from: { mac: string; ip: string }, to: { mac: string; ip: string }): Buffer {
  return Buffer.concat([
    Buffer.from([0, 1, 8, 0, 6, 4, 0, operation]),
    ...[macBytes(from.mac), ipBytes(from.ip), macBytes(to.mac), ipBytes(to.ip)],
  ]);
}

export function ipv4(protocol: number, from: string, to: string, payload: Uint8Array): Buffer {
  const header = Buffer.concat([
    Buffer.from([0x45, 0]),
    be16(20 + payload.length),
    Buffer.from([0, 0, 0x40, 0, 64, protocol, 0, 0]),
    ...[ipBytes(from), ipBytes(to)],
  ]);
  header.writeUInt16BE(~sum16(header) & 0xffff, 10);
  return Buffer.concat([header, payload]);
}

export interface Endpoint {
  ip: string;
  port: number;
}

/** @param partial Only the pseudo header's sum in the checksum: what VIRTIO_NET_HDR_F_NEEDS_CSUM is for. */
export function udp(from: Endpoint, to: Endpoint, payload: Uint8Array, partial = false): Buffer {
  const segment = Buffer.concat([be16(from.port), be16(to.port), be16(8 + payload.length), be16(0), payload]);
  return ipv4(17, from.ip, to.ip, withChecksum(segment, 6, 17, from.ip, to.ip, partial));
}

export const [FIN, SYN, RST, PSH, ACK] = [1, 2, 4, 8, 16];

export function tcp(
  from: Endpoint,
  to: Endpoint,
  fields: { seq: number; ack: number; flags: number; mss?: number },
  payload: Uint8Array = new Uint8Array(0),
): Buffer {
  const options = fields.mss === undefined ? Buffer.alloc(0) : Buffer.from([2, 4, fields.mss >> 8, fields.mss & 0xff]);
  const header = Buffer.alloc(20);
  header.writeUInt16BE(from.port, 0);
  header.writeUInt16BE(to.port, 2);
  header.writeUInt32BE(fields.seq >>> 0, 4);
  header.writeUInt32BE(fields.ack >>> 0, 8);
  header[12] = ((20 + options.length) / 4) << 4;
  header[13] = fields.flags;
  header.writeUInt16BE(65535, 14);
  const segment = Buffer.concat([header, options, payload]);
  return ipv4(6, from.ip, to.ip, withChecksum(segment, 16, 6, from.ip, to.ip, false));
}

export interface Packet {
  toMac: string;
  fromMac: string;
  type: number;
  from: Endpoint;
  to: Endpoint;
  protocol: number;
  /** Whether the transport checksum is right. */
  checksumGood: boolean;
  tcp?: { seq: number; ack: number; flags: number };
  payload: Buffer;
}

/** Takes a frame apart as far as these tests need it. */
export function parse(frame: Buffer): Packet {
  const mac = (at: number) =>
    frame
      .subarray(at, at + 6)
      .toString('hex')
      .replace(/..(?=.)/g, '$&:');
  const base = { toMac: mac(0), fromMac: mac(6), type: frame.readUInt16BE(12) };
  const none = { from: { ip: '', port: 0 }, to: { ip: '', port: 0 }, protocol: 0, checksumGood: false };
  if (base.type === 0x0806) {
    const ends = {
      from: { ip: ipText(frame.subarray(28, 32)), port: 0 },
      to: { ip: ipText(frame.subarray(38, 42)), port: 0 },
    };
    return { ...base, ...none, ...ends, payload: frame.subarray(14) };
  }
  if (base.type !== 0x0800) return { ...base, ...none, payload: frame.subarray(14) };
  const ip = frame.subarray(14, 14 + frame.readUInt16BE(16));
  const headerBytes = (ip[0] & 15) * 4;
  const segment = ip.subarray(headerBytes);
  const [fromIp, toIp] = [ipText(ip.subarray(12, 16)), ipText(ip.subarray(16, 20))];
  const protocol = ip[9];
  const isTcp = protocol === 6;
  return {
    ...base,
    protocol,
    from: { ip: fromIp, port: segment.readUInt16BE(0) },
    to: { ip: toIp, port: segment.readUInt16BE(2) },
    checksumGood: sum16(Buffer.concat([pseudoHeader(protocol, fromIp, toIp, segment.length), segment])) === 0xffff,
    ...(isTcp && { tcp: { seq: segment.readUInt32BE(4), ack: segment.readUInt32BE(8), flags: segment[13] } }),
    payload: segment.subarray(isTcp ? (segment[12] >> 4) * 4 : 8),
  };
}

/** A DHCPDISCOVER, the broadcast flag set. */
export function dhcpDiscover(mac: string, transaction: number): Buffer {
  const bootp = Buffer.alloc(240);
  bootp.set([1, 1, 6]);
  bootp.writeUInt32BE(transaction, 4);
  bootp.writeUInt16BE(0x8000, 10);
  macBytes(mac).copy(bootp, 28);
  bootp.writeUInt32BE(0x63825363, 236);
  const payload = Buffer.concat([bootp, Buffer.from([53, 1, 1, 255])]);
  return ethernet(
    BROADCAST,
    mac,
    0x0800,
    udp({ ip: '0.0.0.0', port: 68 }, { ip: '255.255.255.255', port: 67 }, payload),
  );
}

export interface DhcpReply {
  transaction: number;
  address: string;
  options: Map<number, Buffer>;
}

export function parseDhcp(payload: Buffer): DhcpReply {
  const options = new Map<number, Buffer>();
  for (let at = 240; at < payload.length && payload[at] !== 255;) {
    if (payload[at] === 0) at++;
    else {
      options.set(payload[at], payload.subarray(at + 2, at + 2 + payload[at + 1]));
      at += 2 + payload[at + 1];
    }
  }
  return { transaction: payload.readUInt32BE(4), address: ipText(payload.subarray(16, 20)), options };
}

export const dhcpAddress = (option: Buffer) => ipText(option.subarray(0, 4));

function withChecksum(
  segment: Buffer,
  at: number,
  protocol: number,
  from: string,
  to: string,
  partial: boolean,
): Buffer {
  const pseudo = pseudoHeader(protocol, from, to, segment.length);
  const sum = partial ? sum16(pseudo) : ~sum16(Buffer.concat([pseudo, segment])) & 0xffff;
  segment.writeUInt16BE(sum, at);
  return segment;
}

const pseudoHeader = (protocol: number, from: string, to: string, length: number) =>
  Buffer.concat([ipBytes(from), ipBytes(to), Buffer.from([0, protocol]), be16(length)]);

function sum16(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
}

const be16 = (value: number) => Buffer.from([(value >> 8) & 0xff, value & 0xff]);

/** Messages of the control queues: virtio 1.2, 5.3.6.2. struct { le32 id; le16 event; le16 value; } and sometimes more. */
export const CONTROL_DEVICE_READY = 0; // driver: it is there and wants to hear of ports
export const CONTROL_DEVICE_ADD = 1; // device: there is a port
export const CONTROL_PORT_READY = 3; // driver: it has set the port up
export const CONTROL_CONSOLE_PORT = 4; // device: make a console of it
export const CONTROL_RESIZE = 5; // device: followed by le16 columns, le16 rows
export const CONTROL_PORT_OPEN = 6; // both: somebody is, or is no longer, at this end of the port
export const CONTROL_PORT_NAME = 7; // device: followed by the name

export const CONTROL_HEADER_BYTES = 8;

export interface ControlMessage {
  port: number;
  event: number;
  value: number;
}

export function encodeControl(port: number, event: number, value: number, payload?: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(CONTROL_HEADER_BYTES + (payload?.length ?? 0));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, port, true);
  view.setUint16(4, event, true);
  view.setUint16(6, value, true);
  if (payload) bytes.set(payload, CONTROL_HEADER_BYTES);
  return bytes;
}

/** @param bytes At least {@link CONTROL_HEADER_BYTES}. */
export function decodeControl(bytes: Uint8Array): ControlMessage {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return { port: view.getUint32(0, true), event: view.getUint16(4, true), value: view.getUint16(6, true) };
}

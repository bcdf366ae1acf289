import type { AccessSize, BusDevice } from '../../bus/device.js';

/** A device on the 8-bit ISA bus: a wider access is made of byte accesses to ascending ports, lowest byte first. */
export abstract class IsaDevice implements BusDevice {
  abstract readonly name: string;
  protected abstract readByte(offset: number): number;
  protected abstract writeByte(offset: number, value: number): void;
  abstract reset(): void;

  read(offset: number, size: AccessSize): number {
    if (size === 1) return this.readByte(offset);
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.readByte(offset + i) << (8 * i);
    return value >>> 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 1) return this.writeByte(offset, value);
    for (let i = 0; i < size; i++) this.writeByte(offset + i, (value >>> (8 * i)) & 0xff);
  }
}

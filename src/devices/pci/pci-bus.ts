import type { AccessSize, BusDevice, Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import { VmmError } from '../../errors.js';
import type { IrqLine } from '../../irq/irq-line.js';
import { SharedIrq } from '../../irq/shared-irq.js';
import { BarMap, type BarMapConfig } from './bar-map.js';
import * as defs from './defs.js';
import type { PciFunction } from './function.js';
import { HostBridge } from './host-bridge.js';

export interface PciBusConfig extends BarMapConfig {
  /** Where INTA# to INTD# of device 0 arrive; those of device n are rotated by n. Level-triggered. */
  intx: readonly [IrqLine, IrqLine, IrqLine, IrqLine];
  /** The guest wrote a reset to the reset control register, port 0xcf9. Called from inside its port write. */
  onReset?: () => void;
}

export interface PciBusState {
  configAddress: number;
  /** By slot: device × 8 + function. */
  functions: { slot: number; state: unknown }[];
}

const ALL_ONES: Record<AccessSize, number> = { 1: 0xff, 2: 0xffff, 4: 0xffff_ffff };
const SLOTS = defs.DEVICES_PER_BUS * defs.FUNCTIONS_PER_DEVICE;

/** Bytes of address space that {@link PciBus.ecam} takes: one bus. */
export const ECAM_BYTES = SLOTS * defs.FUNCTION_CONFIG_BYTES;

/**
 * Which of {@link PciBusConfig.intx} an interrupt pin (1 to 4) of a device leads to. PCI 3.0, 2.2.6: cards in neighbouring
 * slots share a line least when each slot is wired one further.
 */
export const intxInput = (device: number, pin: number): number => (device + pin - 1) % 4;

const CONFIG_ENABLE = 2 ** 31;
const RESET_CONTROL_OFFSET = 1; // port 0xcf9
const RESET_CONTROL_CPU = 1 << 2;

/**
 * PCI segment 0 with its one bus, number 0. Device 0 is the host bridge.
 *
 * The machine registers {@link configPorts} at port 0xcf8 (8 ports) and {@link ecam} where the MCFG table says
 * ({@link ECAM_BYTES}); the bus itself registers BARs as the guest maps them.
 */
export class PciBus implements Snapshottable<PciBusState> {
  /** Configuration mechanism #1, and the reset control register of PC chipsets in its midst. */
  readonly configPorts: BusDevice;
  /** Enhanced configuration access: 4 KiB a function, in order (PCI Express 7.2.2). */
  readonly ecam: BusDevice;
  readonly #functions: (PciFunction | undefined)[] = Array<undefined>(SLOTS).fill(undefined);
  readonly #bars: BarMap;
  readonly #lines: readonly SharedIrq[];
  readonly #onReset: (() => void) | undefined;
  #configAddress = 0;
  #resetControl = 0;

  constructor(config: PciBusConfig) {
    this.#bars = new BarMap(config);
    this.#lines = config.intx.map((line) => new SharedIrq(line));
    this.#onReset = config.onReset;
    this.configPorts = {
      name: 'pci-config-ports',
      read: (offset, size) => this.#readPorts(offset, size),
      write: (offset, size, value) => this.#writePorts(offset, size, value),
      reset: () => this.reset(),
    };
    this.ecam = {
      name: 'pci-ecam',
      read: (offset, size) => this.#readEcam(offset, size),
      write: (offset, size, value) => this.#writeEcam(offset, size, value),
      reset() {}, // nothing of its own
    };
    this.add(new HostBridge(), 0);
  }

  /**
   * Puts a function on the bus.
   *
   * @param device 1 to 31; by default the first that is free.
   * @param functionNumber 0 to 7. Function 0 first: guests look for others only where it is.
   * @returns Its device number.
   * @throws VmmError code "INVALID_ARGUMENT" when there is no such slot, or no function 0 before another.
   * @throws VmmError code "BUSY" when the slot is taken, or all devices are.
   */
  add(pciFunction: PciFunction, device = this.#freeDevice(), functionNumber = 0): number {
    const inRange = (value: number, count: number) => Number.isInteger(value) && value >= 0 && value < count;
    if (!inRange(device, defs.DEVICES_PER_BUS) || !inRange(functionNumber, defs.FUNCTIONS_PER_DEVICE)) {
      throw new VmmError('INVALID_ARGUMENT', `there is no PCI device ${device}, function ${functionNumber}`);
    }
    const slot = device * defs.FUNCTIONS_PER_DEVICE + functionNumber;
    const first = this.#functions[slot - functionNumber];
    if (this.#functions[slot]) {
      const taken = `PCI device ${device}, function ${functionNumber} is ${this.#functions[slot].name}`;
      throw new VmmError('BUSY', `${taken}; choose another device for ${pciFunction.name}`);
    }
    if (functionNumber > 0) {
      if (!first) throw new VmmError('INVALID_ARGUMENT', `add function 0 of PCI device ${device} before the others`);
      first.config.setMultiFunction();
    }
    this.#functions[slot] = pciFunction;
    const pin = pciFunction.config.peek(defs.INTERRUPT_PIN, 1);
    pciFunction.attach({ device, function: functionNumber, intx: pin ? this.#intx(device, pin) : undefined });
    this.#bars.add(pciFunction);
    return device;
  }

  /** How often a guest wanted a BAR outside the windows, or where another device is. */
  get refusedMappings(): number {
    return this.#bars.refused;
  }

  /** Every function with its place, in order. */
  functions(): { device: number; function: number; pciFunction: PciFunction }[] {
    return this.#functions.flatMap((pciFunction, slot) => {
      const place = {
        device: Math.floor(slot / defs.FUNCTIONS_PER_DEVICE),
        function: slot % defs.FUNCTIONS_PER_DEVICE,
      };
      return pciFunction ? [{ ...place, pciFunction }] : [];
    });
  }

  /** Resets every function and takes all BARs off the buses. */
  reset(): void {
    this.#configAddress = 0;
    this.#resetControl = 0;
    for (const pciFunction of this.#functions) pciFunction?.reset();
  }

  save(): PciBusState {
    const functions = this.#functions.flatMap((entry, slot) => (entry ? [{ slot, state: entry.save() }] : []));
    return { configAddress: this.#configAddress, functions };
  }

  /**
   * Guest memory must have been restored before.
   *
   * @throws VmmError code "INVALID_ARGUMENT" when the state is damaged or has other functions; all are reset then.
   */
  restore(state: PciBusState): void {
    this.reset();
    const own = this.#functions.flatMap((entry, slot) => (entry ? [{ slot, entry }] : []));
    try {
      const saved = new SavedState('PCI bus', state);
      const configAddress = saved.integer('configAddress', 0xffff_ffff);
      saved.list('functions', own.length).forEach((item, i) => {
        const slot = new SavedState(`PCI bus: function ${i}`, item).integer('slot', SLOTS - 1);
        if (slot !== own[i].slot) {
          throw new VmmError('INVALID_ARGUMENT', `the saved PCI bus has a function in slot ${slot}, this one has not`);
        }
        own[i].entry.restore((item as PciBusState['functions'][number]).state);
      });
      this.#configAddress = configAddress;
    } catch (error) {
      this.reset();
      throw error;
    }
  }

  #intx(device: number, pin: number): IrqLine {
    return this.#lines[intxInput(device, pin)].input();
  }

  #freeDevice(): number {
    for (let device = 0; device < defs.DEVICES_PER_BUS; device++) {
      if (!this.#functions[device * defs.FUNCTIONS_PER_DEVICE]) return device;
    }
    throw new VmmError(
      'BUSY',
      `all ${defs.DEVICES_PER_BUS} PCI devices are taken; use fewer, or several functions each`,
    );
  }

  #readPorts(offset: number, size: AccessSize): number {
    if (offset >= 4) {
      const target = this.#target();
      return target ? target.config.read(this.#register() + offset - 4, size) : ALL_ONES[size];
    }
    // 3.2.2.3.2: only a dword is CONFIG_ADDRESS; narrower accesses are for whoever else is at these ports.
    if (size === 4 && offset === 0) return this.#configAddress;
    return size === 1 && offset === RESET_CONTROL_OFFSET ? this.#resetControl : ALL_ONES[size];
  }

  #writePorts(offset: number, size: AccessSize, value: number): void {
    if (offset >= 4) this.#target()?.config.write(this.#register() + offset - 4, size, value);
    else if (size === 4 && offset === 0) this.#configAddress = (value & ~0x3) >>> 0;
    else if (size === 1 && offset === RESET_CONTROL_OFFSET) this.#writeResetControl(value);
  }

  /** Intel ICH9 data sheet, 13.7.5: the reset happens when the CPU reset bit goes from 0 to 1, whatever its kind. */
  #writeResetControl(value: number): void {
    const before = this.#resetControl;
    this.#resetControl = value & 0x0e;
    if (value & ~before & RESET_CONTROL_CPU) this.#onReset?.();
  }

  /** What CONFIG_ADDRESS selects: enable bit 31, bus 23:16, device 15:11, function 10:8. */
  #target(): PciFunction | undefined {
    const address = this.#configAddress;
    if (address < CONFIG_ENABLE || address & 0xff_0000) return undefined;
    return this.#functions[(address >>> 8) & 0xff];
  }

  /** Bits 7:2 are the register; 27:24 continue it, as on AMD processors since family 10h. Zero elsewhere. */
  #register(): number {
    return ((this.#configAddress >>> 16) & 0xf00) | (this.#configAddress & 0xfc);
  }

  #readEcam(offset: number, size: AccessSize): number {
    const at = offset % defs.FUNCTION_CONFIG_BYTES;
    return this.#functions[(offset - at) / defs.FUNCTION_CONFIG_BYTES]?.config.read(at, size) ?? ALL_ONES[size];
  }

  #writeEcam(offset: number, size: AccessSize, value: number): void {
    const at = offset % defs.FUNCTION_CONFIG_BYTES;
    this.#functions[(offset - at) / defs.FUNCTION_CONFIG_BYTES]?.config.write(at, size, value);
  }
}

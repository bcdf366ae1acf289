import { VmmError } from '../errors.js';
import type { IrqLine } from '../irq/irq-line.js';
import { GuestMemory } from '../memory/guest-memory.js';
import { native, type NativeVm } from '../native/addon.js';
import {
  KVM,
  KVM_CAP,
  KVM_IOEVENTFD_FLAG,
  KVM_IRQCHIP,
  KVM_IRQFD_FLAG,
  KVM_IRQ_ROUTING,
  KVM_MEM,
  KVM_MSR_EXIT_REASON,
  KVM_MSR_FILTER,
  LAYOUT,
} from './abi.js';
import { requireArray, requireInteger, requireName, requireU64 } from './arguments.js';
import type { EventFd } from './event-fd.js';
import { GuestRam } from './ram.js';
import { decode, decodeArray, encode, encodeArray, sizeOf, type Struct, type StructName } from './struct.js';
import { Vcpu } from './vcpu.js';

export interface AddMemory {
  /** First guest-physical address, a multiple of 4096. */
  gpa: number | bigint;
  /** Bytes, a multiple of 4096. */
  size: number;
  /** Guest writes exit as MMIO. */
  readOnly?: boolean;
  /** Remember which pages the guest wrote: see `harvestDirtyLog`. */
  logDirtyPages?: boolean;
  /** `false`: no other process will map it. See `GuestRam.create`. */
  shared?: boolean;
  /** Only vCPUs see it: it is no part of `memory`, so no device reads or writes there. */
  cpuOnly?: boolean;
  /** Memory to use instead of new memory. Its gpa and size must be these. The last VM that uses it closes it. */
  ram?: GuestRam;
}

export interface IoEventFd {
  eventFd: EventFd;
  /** Port, or guest-physical address. */
  address: number;
  space: 'pio' | 'mmio';
  /** Bytes of the write; 0 matches every width (with `mmio`, and where KVM has KVM_CAP_IOEVENTFD_NO_LENGTH). */
  length: 0 | 1 | 2 | 4 | 8;
  /** Only writes of this value signal; others exit. */
  datamatch?: bigint;
}

export interface IrqFd {
  gsi: number;
  /** Signalling it raises the interrupt. */
  eventFd: EventFd;
  /** For a level-triggered GSI: KVM signals it when the guest acknowledges, and deasserts the line. */
  resampleFd?: EventFd;
}

/** MSRs whose accesses a filter allows or denies, of those kinds that are true. */
export interface MsrFilterRange {
  /** Index of the first. */
  base: number;
  /** How many, up to 12,288. */
  count: number;
  read?: boolean;
  write?: boolean;
  allow: boolean;
}

/** Where a GSI goes: an input of an in-kernel interrupt controller, or a message. */
export type GsiRoute =
  | { gsi: number; type: 'irqchip'; chip: 'pic-master' | 'pic-slave' | 'ioapic'; pin: number }
  | { gsi: number; type: 'msi'; address: bigint; data: number };

export interface Pit {
  channels: Struct<'kvm_pit_channel_state'>[];
  flags: number;
}

const U32_MAX = 2 ** 32 - 1;

const CHIPS = {
  'pic-master': KVM_IRQCHIP.PIC_MASTER,
  'pic-slave': KVM_IRQCHIP.PIC_SLAVE,
  ioapic: KVM_IRQCHIP.IOAPIC,
} as const;
export type IrqchipName = keyof typeof CHIPS;

const ROUTE_TYPES = { irqchip: KVM_IRQ_ROUTING.IRQCHIP, msi: KVM_IRQ_ROUTING.MSI } as const;

interface Slot {
  id: number;
  ram: GuestRam;
  flags: number;
}

/**
 * A virtual machine: memory slots, interrupt controllers, vCPUs.
 *
 * Add all memory before the irqchip and before any ioeventfd: afterwards each slot costs milliseconds. Every method
 * throws VmmError code "CLOSED" after close, and code "IOCTL" with the KVM request and errno where KVM refuses.
 */
export class Vm implements Disposable {
  /** All of the guest's RAM by guest-physical address. */
  readonly memory = new GuestMemory();
  readonly #native: NativeVm;
  readonly #vcpus: Vcpu[] = [];
  readonly #slots: Slot[] = [];
  #closed = false;

  /** @internal Made by `Kvm.createVm`. */
  constructor(vm: NativeVm) {
    this.#native = vm;
  }

  get vcpus(): readonly Vcpu[] {
    return this.#vcpus;
  }

  /** KVM_CHECK_EXTENSION for this VM: 0 for no, else what the capability's documentation says. */
  checkExtension(capability: number): number {
    return this.#ioctl(KVM.CHECK_EXTENSION, capability);
  }

  /** KVM_ENABLE_CAP. @param args Up to four, as the capability's documentation says. */
  enableCap(capability: number, args: readonly bigint[] = []): void {
    requireArray('args', args);
    if (args.length > 4)
      throw new VmmError('INVALID_ARGUMENT', `a capability has at most four args, not ${args.length}`);
    this.#set(KVM.ENABLE_CAP, 'kvm_enable_cap', {
      cap: capability,
      flags: 0,
      args: Array.from({ length: 4 }, (_, i) => args[i] ?? 0n),
    });
  }

  /**
   * Gives the guest RAM (KVM_SET_USER_MEMORY_REGION).
   *
   * @throws VmmError code "MEMORY_OVERLAP" when the range meets other RAM.
   */
  addMemory({
    gpa,
    size,
    readOnly = false,
    logDirtyPages = false,
    shared = true,
    cpuOnly = false,
    ram,
  }: AddMemory): GuestRam {
    const own = ram ?? GuestRam.create(gpa, size, { shared });
    if (own.gpa !== Number(gpa) || own.sizeBytes !== size) {
      throw new VmmError('INVALID_ARGUMENT', 'gpa and size must be those of the given memory');
    }
    let id = 0;
    while (this.#slots.some((slot) => slot.id === id)) id++;
    const flags = (readOnly ? KVM_MEM.READONLY : 0) | (logDirtyPages ? KVM_MEM.LOG_DIRTY_PAGES : 0);
    const undo: (() => void)[] = ram ? [] : [() => own.close()];
    try {
      if (!cpuOnly) {
        this.memory.addRegion(own);
        undo.push(() => this.memory.removeRegion(own));
      }
      native(() => this.#native.setSlot(id, flags, own.gpa, own.native, 0, size));
    } catch (error) {
      for (const step of undo) step();
      throw error;
    }
    own.users.add(this);
    this.#slots.push({ id, ram: own, flags });
    return own;
  }

  /** Takes RAM from the guest, and closes it unless another VM uses it. */
  removeMemory(ram: GuestRam): void {
    const slot = this.#slot(ram);
    native(() => this.#native.removeSlot(slot.id));
    this.#slots.splice(this.#slots.indexOf(slot), 1);
    this.memory.removeRegion(ram);
    this.#release(ram);
  }

  /** Runs `change` while the guest does not see this memory: its accesses exit as MMIO. */
  withoutMemory(ram: GuestRam, change: () => void): void {
    const { id, flags } = this.#slot(ram);
    native(() => this.#native.removeSlot(id));
    try {
      change();
    } finally {
      native(() => this.#native.setSlot(id, flags, ram.gpa, ram.native, 0, ram.sizeBytes));
    }
  }

  /** Starts or stops remembering which pages of this memory the guest writes. */
  setDirtyLogging(ram: GuestRam, enabled: boolean): void {
    const slot = this.#slot(ram);
    const flags = enabled ? slot.flags | KVM_MEM.LOG_DIRTY_PAGES : slot.flags & ~KVM_MEM.LOG_DIRTY_PAGES;
    native(() => this.#native.setSlot(slot.id, flags, ram.gpa, ram.native, 0, ram.sizeBytes));
    slot.flags = flags;
  }

  /**
   * The pages written since the last call, and forgets them (KVM_GET_DIRTY_LOG).
   *
   * @returns One bit a page of 4 KiB: page n of the memory is bit n % 64 of word n / 64.
   */
  harvestDirtyLog(ram: GuestRam): BigUint64Array {
    return native(() => this.#native.dirtyLog(this.#slot(ram).id));
  }

  /**
   * Has accesses to MSRs that KVM would not, or may not, handle exit with reason `msr` instead of a #GP in the guest
   * (KVM_CAP_X86_USER_SPACE_MSR).
   *
   * @param which `unknown`: MSRs that KVM does not have; `invalid`: values it refuses; `filtered`: what
   * {@link setMsrFilter} denies. None: as it was at first.
   */
  setMsrExits(which: { unknown?: boolean; invalid?: boolean; filtered?: boolean }): void {
    const { unknown = false, invalid = false, filtered = false } = which;
    const { UNKNOWN, INVAL, FILTER } = KVM_MSR_EXIT_REASON;
    const reasons = (unknown ? UNKNOWN : 0) | (invalid ? INVAL : 0) | (filtered ? FILTER : 0);
    this.enableCap(KVM_CAP.X86_USER_SPACE_MSR, [BigInt(reasons)]);
  }

  /**
   * Which of the guest's accesses to MSRs KVM handles (KVM_X86_SET_MSR_FILTER); what is denied is a #GP, or an exit where
   * {@link setMsrExits} says so. x2APIC's MSRs are never filtered. Replaces the filter before; `{}` takes it away.
   *
   * @param filter.denyOthers Deny what no range is about, too. @param filter.ranges At most 16.
   */
  setMsrFilter({
    denyOthers = false,
    ranges = [],
  }: {
    denyOthers?: boolean;
    ranges?: readonly MsrFilterRange[];
  }): void {
    requireArray('ranges', ranges);
    const words = ranges.flatMap(({ base, count, read = false, write = false, allow }) => [
      (read ? KVM_MSR_FILTER.READ : 0) | (write ? KVM_MSR_FILTER.WRITE : 0),
      requireInteger('base', base, U32_MAX),
      requireInteger('count', count, U32_MAX),
      allow ? 1 : 0,
    ]);
    const flags = denyOthers ? KVM_MSR_FILTER.DEFAULT_DENY : 0;
    native(() => this.#native.setMsrFilter(flags, Uint32Array.from(words)));
  }

  /** PIC, IOAPIC and a local APIC for every vCPU, in the kernel. Before the first vCPU. */
  createIrqchip(): void {
    this.#ioctl(KVM.CREATE_IRQCHIP, 0);
  }

  /** The state of one in-kernel interrupt controller, as KVM lays it out (struct kvm_irqchip, `chip`). */
  getIrqchip(chip: IrqchipName): Uint8Array {
    const bytes = new Uint8Array(LAYOUT['kvm_irqchip']);
    new DataView(bytes.buffer).setUint32(LAYOUT['kvm_irqchip.chip_id'], requireName('chip', CHIPS, chip), true);
    this.#ioctl(KVM.GET_IRQCHIP, bytes);
    return bytes.slice(LAYOUT['kvm_irqchip.chip']);
  }
  setIrqchip(chip: IrqchipName, state: Uint8Array): void {
    const bytes = new Uint8Array(LAYOUT['kvm_irqchip']);
    if (state.length !== bytes.length - LAYOUT['kvm_irqchip.chip']) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `irqchip state must be what getIrqchip returned, not ${state.length} bytes`,
      );
    }
    new DataView(bytes.buffer).setUint32(LAYOUT['kvm_irqchip.chip_id'], requireName('chip', CHIPS, chip), true);
    bytes.set(state, LAYOUT['kvm_irqchip.chip']);
    this.#ioctl(KVM.SET_IRQCHIP, bytes);
  }

  /** An i8254 in the kernel. After the irqchip. @param options `dummySpeaker`: the kernel answers port 0x61, too. */
  createPit2({ dummySpeaker = false }: { dummySpeaker?: boolean } = {}): void {
    this.#set(KVM.CREATE_PIT2, 'kvm_pit_config', { flags: dummySpeaker ? 1 : 0 });
  }
  getPit2(): Pit {
    const bytes = new Uint8Array(LAYOUT['kvm_pit_state2']);
    this.#ioctl(KVM.GET_PIT2, bytes);
    return {
      channels: decodeArray('kvm_pit_channel_state', 3, bytes, LAYOUT['kvm_pit_state2.channels']),
      flags: new DataView(bytes.buffer).getUint32(LAYOUT['kvm_pit_state2.flags'], true),
    };
  }
  setPit2(pit: Pit): void {
    const bytes = new Uint8Array(LAYOUT['kvm_pit_state2']);
    requireArray('channels', pit.channels);
    if (pit.channels.length !== 3) throw new VmmError('INVALID_ARGUMENT', 'a PIT has three channels');
    encodeArray('kvm_pit_channel_state', pit.channels, bytes, LAYOUT['kvm_pit_state2.channels']);
    new DataView(bytes.buffer).setUint32(LAYOUT['kvm_pit_state2.flags'], pit.flags, true);
    this.#ioctl(KVM.SET_PIT2, bytes);
  }

  /** Drives an interrupt line (KVM_IRQ_LINE). */
  setIrqLine(gsi: number, level: boolean): void {
    this.#set(KVM.IRQ_LINE, 'kvm_irq_level', { irq: gsi, level: level ? 1 : 0 });
  }

  /**
   * The line as a device's {@link IrqLine}: a request to the kernel only when the level changes. Once the VM is closed it
   * does nothing: a device may outlive its VM by an event.
   */
  irqLine(gsi: number): IrqLine {
    let current = false;
    return {
      set: (level) => {
        if (level === current || this.#closed) return;
        current = level;
        this.setIrqLine(gsi, level);
      },
    };
  }

  /** Has an eventfd raise an interrupt without any exit (KVM_IRQFD). Undone by {@link removeIrqFd}. */
  addIrqFd({ gsi, eventFd, resampleFd }: IrqFd): void {
    this.#irqFd(gsi, eventFd, resampleFd, resampleFd ? KVM_IRQFD_FLAG.RESAMPLE : 0);
  }
  removeIrqFd({ gsi, eventFd, resampleFd }: IrqFd): void {
    this.#irqFd(gsi, eventFd, resampleFd, KVM_IRQFD_FLAG.DEASSIGN);
  }

  /** Has a guest's write to a port or address signal an eventfd instead of exiting (KVM_IOEVENTFD). */
  addIoEventFd(ioEventFd: IoEventFd): void {
    this.#ioEventFd(ioEventFd, 0);
  }
  removeIoEventFd(ioEventFd: IoEventFd): void {
    this.#ioEventFd(ioEventFd, KVM_IOEVENTFD_FLAG.DEASSIGN);
  }

  /** Replaces the whole table of GSI routes (KVM_SET_GSI_ROUTING). */
  setGsiRouting(routes: readonly GsiRoute[]): void {
    requireArray('routes', routes);
    const width = LAYOUT['kvm_irq_routing_entry'];
    const bytes = new Uint8Array(LAYOUT['kvm_irq_routing.entries'] + routes.length * width);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, routes.length, true);
    routes.forEach((route, i) => {
      const entry = LAYOUT['kvm_irq_routing.entries'] + i * width;
      const union = entry + LAYOUT['kvm_irq_routing_entry.u'];
      view.setUint32(entry + LAYOUT['kvm_irq_routing_entry.gsi'], requireInteger('gsi', route.gsi, U32_MAX), true);
      const type = requireName('type', ROUTE_TYPES, route.type);
      view.setUint32(entry + LAYOUT['kvm_irq_routing_entry.type'], type, true);
      if (route.type === 'irqchip') {
        view.setUint32(union, requireName('chip', CHIPS, route.chip), true);
        view.setUint32(union + 4, requireInteger('pin', route.pin, U32_MAX), true);
      } else {
        view.setBigUint64(union, requireU64('address', route.address), true);
        view.setUint32(union + 8, requireInteger('data', route.data, U32_MAX), true);
      }
    });
    this.#ioctl(KVM.SET_GSI_ROUTING, bytes);
  }

  /** Delivers a message-signalled interrupt now. @returns Whether the guest took it (false: blocked). */
  signalMsi(address: bigint, data: number): boolean {
    requireU64('address', address);
    return (
      this.#set(KVM.SIGNAL_MSI, 'kvm_msi', {
        address_lo: Number(address & 0xffff_ffffn),
        address_hi: Number(address >> 32n),
        data,
        flags: 0,
        devid: 0,
      }) > 0
    );
  }

  /** Three pages below 4 GiB for KVM's own use on Intel processors. Before the first vCPU. */
  setTssAddress(gpa: number): void {
    this.#ioctl(KVM.SET_TSS_ADDR, gpa);
  }
  /** One page below 4 GiB for KVM's own use on Intel processors. Before the first vCPU. */
  setIdentityMapAddress(gpa: number): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(requireInteger('gpa', gpa)), true);
    this.#ioctl(KVM.SET_IDENTITY_MAP_ADDR, bytes);
  }

  /** kvm-clock in ns, with what KVM tells beside it. */
  getClock(): Struct<'kvm_clock_data'> {
    const bytes = new Uint8Array(sizeOf('kvm_clock_data'));
    this.#ioctl(KVM.GET_CLOCK, bytes);
    return decode('kvm_clock_data', bytes);
  }
  setClock(clock: Struct<'kvm_clock_data'>): void {
    this.#set(KVM.SET_CLOCK, 'kvm_clock_data', clock);
  }

  /** @param id The vCPU's number and local APIC id. */
  createVcpu(id: number): Vcpu {
    const vcpu = new Vcpu(
      native(() => this.#native.createVcpu(id)),
      id,
      () => this.checkExtension(KVM_CAP.XSAVE2),
    );
    this.#vcpus.push(vcpu);
    return vcpu;
  }

  /** Closes the vCPUs, the VM, and its memory unless another VM uses it, in this order. Idempotent. */
  close(): void {
    for (const vcpu of this.#vcpus) vcpu.close();
    this.#closed = true;
    this.#native.close();
    for (const { ram } of this.#slots) this.#release(ram);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #release(ram: GuestRam): void {
    ram.users.delete(this);
    if (ram.users.size === 0) ram.close();
  }

  #slot(ram: GuestRam): Slot {
    const slot = this.#slots.find((candidate) => candidate.ram === ram);
    if (!slot) throw new VmmError('INVALID_ARGUMENT', 'this memory does not belong to the VM');
    return slot;
  }

  #irqFd(gsi: number, eventFd: EventFd, resampleFd: EventFd | undefined, flags: number): void {
    this.#set(KVM.IRQFD, 'kvm_irqfd', { fd: eventFd.ownFd, gsi, flags, resamplefd: resampleFd?.ownFd ?? 0 });
  }

  #ioEventFd({ eventFd, address, space, length, datamatch }: IoEventFd, flags: number): void {
    this.#set(KVM.IOEVENTFD, 'kvm_ioeventfd', {
      datamatch: datamatch ?? 0n,
      addr: BigInt(requireInteger('address', address)),
      len: length,
      fd: eventFd.ownFd,
      flags:
        flags |
        (datamatch === undefined ? 0 : KVM_IOEVENTFD_FLAG.DATAMATCH) |
        (space === 'pio' ? KVM_IOEVENTFD_FLAG.PIO : 0),
    });
  }

  #ioctl(request: number, argument: number | bigint | Uint8Array): number {
    return native(() => this.#native.ioctl(request, argument));
  }

  #set<N extends StructName>(request: number, name: N, value: Struct<N>): number {
    const bytes = new Uint8Array(sizeOf(name));
    encode(name, value, bytes);
    return this.#ioctl(request, bytes);
  }
}

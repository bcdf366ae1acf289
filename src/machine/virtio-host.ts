import type { RemotePciDevice } from '../backends/qemu/remote-pci/device.js';
import type { AcpiDescription, AcpiDevice } from '../boot/acpi.js';
import type { GpaRange } from '../boot/layout.js';
import type { Bus } from '../bus/bus.js';
import { assignBars } from '../devices/pci/assign-bars.js';
import { ECAM_BYTES, intxInput, PciBus } from '../devices/pci/pci-bus.js';
import { VirtioPci } from '../devices/pci/virtio-pci.js';
import { VmmError } from '../errors.js';
import type { IrqLine } from '../irq/irq-line.js';
import { EventFd } from '../kvm/event-fd.js';
import { MsiRouter } from '../kvm/msi-router.js';
import type { IoEventFd, Vm } from '../kvm/vm.js';
import { INTERRUPT_USED_BUFFER, MMIO_INTERRUPT_ACK, MMIO_QUEUE_NOTIFY } from '../virtio/defs.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { TransportCore } from '../virtio/transport/core.js';
import { VIRTIO_MMIO_BYTES, VirtioMmio } from '../virtio/transport/mmio.js';
import { PCI, VIRTIO_MMIO } from './layout.js';
import { QueueEventFds } from './queue-event-fds.js';
import type { RegisterPages } from './register-pages.js';

export interface VirtioHostConfig {
  transport: 'pci' | 'mmio';
  /** Inputs of the I/O APIC for devices on MMIO, one each. */
  mmioGsis: readonly number[];
  /** Where guests read the registers of devices on MMIO, if not by exits. */
  registerPages: RegisterPages | undefined;
  /** PCI devices in QEMU processes: on the PCI bus in either case. */
  remotes: readonly RemotePciDevice[];
  vm: Vm;
  ports: Bus;
  mmio: Bus;
  /** The guest reset the machine through the PCI chipset's register. */
  onReset: () => void;
}

/**
 * Puts virtio devices where a guest finds them, and wires them to KVM: kicks arrive by ioeventfd, interrupts leave by
 * irqfd (MSI-X, MMIO) or an interrupt line (INTx).
 */
export class VirtioHost {
  /** What the ACPI tables must say. */
  readonly acpi: { devices: readonly AcpiDevice[]; pci: NonNullable<AcpiDescription['pci']> };
  /** Address space that is neither RAM nor free. */
  readonly reserved: readonly GpaRange[] = [PCI.ECAM];
  /** Kicks that came by ioeventfd. */
  kicks = 0;
  readonly #vm: Vm;
  readonly #devices: readonly VirtioDevice[];
  readonly #cores: TransportCore[] = [];
  readonly #msi: MsiRouter;
  readonly #kickers = new Set<Kicker>();
  readonly #interruptFds: EventFd[] = [];
  #edges = 0;
  readonly #eventFds: QueueEventFds[] = [];

  /** The VM has its irqchip, and no vCPU runs. */
  constructor(devices: readonly VirtioDevice[], config: VirtioHostConfig) {
    const { transport, vm } = config;
    this.#vm = vm;
    this.#devices = devices;
    this.#msi = new MsiRouter(vm);
    const onMmio = transport === 'mmio' ? devices : [];
    const onPci = transport === 'pci' ? devices : [];
    this.acpi = {
      devices: onMmio.map((device, index) => this.#addMmio(device, index, config)),
      // Also without devices: a kernel that finds no host bridge complains.
      pci: this.#addPci(onPci, config),
    };
  }

  /** Interrupts sent by irqfd. */
  get interrupts(): number {
    return this.#msi.signals + this.#edges;
  }

  /** How often the device's driver broke a rule, and the last one. */
  failuresOf(device: VirtioDevice): { failures: number; lastFailure?: string } {
    const core = this.#cores.find((candidate) => candidate.device === device);
    const lastFailure = core?.lastFailure;
    return { failures: core?.failures ?? 0, ...(lastFailure !== undefined && { lastFailure }) };
  }

  /** Stops the devices. @returns When none of them touches guest memory any more. */
  async close(): Promise<void> {
    for (const kicker of this.#kickers) kicker.close();
    for (const device of this.#devices) await device.reset();
    for (const eventFds of this.#eventFds) eventFds[Symbol.dispose]();
    this.#msi[Symbol.dispose]();
    for (const eventFd of this.#interruptFds) eventFd.close();
  }

  #addMmio(device: VirtioDevice, index: number, config: VirtioHostConfig): AcpiDevice {
    const { mmioGsis: gsis, mmio: bus, registerPages } = config;
    const gsi = gsis[index];
    if (gsi === undefined) {
      throw new VmmError(
        'INVALID_ARGUMENT',
        `virtio over MMIO has room for ${gsis.length} devices here; use fewer, or PCI`,
      );
    }
    const gpa = VIRTIO_MMIO.BASE_GPA + index * VIRTIO_MMIO_BYTES;
    const events = this.#eventsOf(device, (queue) => transport.core.onCall(queue));
    // Drivers acknowledge every interrupt, nearly always for used buffers alone. What else they write exits.
    const acknowledgement = new EventFd();
    const transport = new VirtioMmio({
      device,
      memory: this.#vm.memory,
      irq: this.#edge(gsi),
      events,
      ...(registerPages && { page: registerPages.page(index) }),
      takeAcknowledgement: () => acknowledgement.read() > 0n,
    });
    bus.register(transport, gpa, VIRTIO_MMIO_BYTES);
    this.#cores.push(transport.core);
    for (let queue = 0; queue < transport.core.queueCount; queue++) {
      const place = { address: gpa + MMIO_QUEUE_NOTIFY, space: 'mmio', length: 4, datamatch: BigInt(queue) } as const;
      this.#kick(place, events[queue], () => transport.core.onDriverNotify(queue));
    }
    this.#interruptFds.push(acknowledgement);
    acknowledgement.onReadable(() => transport.settle());
    this.#vm.addIoEventFd({
      address: gpa + MMIO_INTERRUPT_ACK,
      space: 'mmio',
      length: 4,
      datamatch: BigInt(INTERRUPT_USED_BUFFER),
      eventFd: acknowledgement,
    });
    return { type: 'virtio-mmio', gpa, sizeBytes: VIRTIO_MMIO_BYTES, gsi };
  }

  #addPci(devices: readonly VirtioDevice[], { remotes, ports, mmio, onReset }: VirtioHostConfig) {
    const [a, b, c, d] = PCI.INTX_GSIS.map((gsi) => this.#vm.irqLine(gsi));
    const windows = {
      memoryWindows: [{ base: PCI.MEMORY_WINDOW.gpa, sizeBytes: PCI.MEMORY_WINDOW.sizeBytes }],
      portWindows: [{ base: PCI.PORT_WINDOW.port, sizeBytes: PCI.PORT_WINDOW.count }],
    };
    const bus = new PciBus({ ports, mmio, ...windows, intx: [a, b, c, d], onReset });
    ports.register(bus.configPorts, PCI.CONFIG_PORT, 8);
    mmio.register(bus.ecam, PCI.ECAM.gpa, ECAM_BYTES);
    for (const device of devices) {
      const kickers = new Map<number, Kicker>();
      const events = this.#eventsOf(device, (queue) => pciFunction.core.onCall(queue));
      const pciFunction = new VirtioPci({
        device,
        memory: this.#vm.memory,
        msi: this.#msi,
        events,
        onNotifyAddress: (queue, gpa) => {
          kickers.get(queue)?.close();
          kickers.delete(queue);
          if (gpa === undefined) return;
          const place = { address: gpa, space: 'mmio', length: 0 } as const;
          kickers.set(
            queue,
            this.#kick(place, events[queue], () => pciFunction.notify(queue)),
          );
        },
      });
      bus.add(pciFunction);
      this.#cores.push(pciFunction.core);
    }
    for (const remote of remotes) this.#addRemote(remote, bus);
    assignBars(bus, windows);
    return {
      ecam: PCI.ECAM,
      memoryWindows: [PCI.MEMORY_WINDOW],
      portWindows: [PCI.PORT_WINDOW],
      intxGsis: PCI.INTX_GSIS,
    };
  }

  /** Its interrupt pin goes past this process: KVM combines it with what else asserts the line, and says when to look again. */
  #addRemote(remote: RemotePciDevice, bus: PciBus): void {
    const device = bus.add(remote);
    if (remote.interruptPin === 0) return;
    const [eventFd, resampleFd] = [new EventFd(), new EventFd()];
    this.#interruptFds.push(eventFd, resampleFd);
    this.#vm.addIrqFd({ gsi: PCI.INTX_GSIS[intxInput(device, remote.interruptPin)], eventFd, resampleFd });
    remote.setIrqFds(eventFd.fd, resampleFd.fd);
  }

  /** An interrupt input that is announced as edge-triggered: each assertion is an interrupt, by irqfd. */
  #edge(gsi: number): IrqLine {
    const eventFd = new EventFd();
    this.#interruptFds.push(eventFd);
    this.#vm.addIrqFd({ gsi, eventFd });
    return {
      set: (level) => {
        if (!level) return;
        this.#edges++;
        eventFd.signal();
      },
    };
  }

  /** The eventfds of an external device's queues; of other devices there are none. */
  #eventsOf(device: VirtioDevice, onCall: (queue: number) => void): QueueEventFds[] {
    if (!device.external) return [];
    const events = device.queueSizes.map((_, queue) => new QueueEventFds(() => onCall(queue)));
    this.#eventFds.push(...events);
    return events;
  }

  /** @param external The queue's eventfds, where another process listens to the kicks. */
  #kick(place: Omit<IoEventFd, 'eventFd'>, external: QueueEventFds | undefined, onKick: () => void): Kicker {
    const eventFd = external?.kickEvent ?? new EventFd();
    const ioEventFd = { ...place, eventFd };
    if (!external) {
      eventFd.onReadable(() => {
        eventFd.read();
        this.kicks++;
        onKick();
      });
    }
    this.#vm.addIoEventFd(ioEventFd);
    const kicker: Kicker = {
      close: () => {
        if (!this.#kickers.delete(kicker)) return;
        this.#vm.removeIoEventFd(ioEventFd);
        if (!external) eventFd.close();
      },
    };
    this.#kickers.add(kicker);
    return kicker;
  }
}

/** One queue's ioeventfd. */
interface Kicker {
  close(): void;
}

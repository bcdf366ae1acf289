import type { Bus } from '../bus/bus.js';
import { KVM_EXIT } from '../kvm/abi.js';
import type { VmExit } from '../kvm/exit.js';
import type { Vcpu } from '../kvm/vcpu.js';

/** Exit reasons that {@link RunLoop.exits} counts by name; others are `other`. */
const COUNTED: readonly (keyof typeof KVM_EXIT)[] = ['IO', 'MMIO', 'HLT', 'SHUTDOWN', 'INTR', 'DEBUG', 'SYSTEM_EVENT'];
const COUNTERS = 64;

/** The run loop of one vCPU: exit, bus, re-enter. */
export class RunLoop {
  readonly #vcpu: Vcpu;
  readonly #ports: Bus;
  readonly #mmio: Bus;
  readonly #counts = new Float64Array(COUNTERS);
  #stopping = false;

  constructor(vcpu: Vcpu, ports: Bus, mmio: Bus) {
    this.#vcpu = vcpu;
    this.#ports = ports;
    this.#mmio = mmio;
  }

  /** Exits that reached user space, by KVM's exit reason in lower case. */
  exits(): Record<string, number> {
    const result: Record<string, number> = {};
    let other = this.#counts.reduce((sum, count) => sum + count, 0);
    for (const name of COUNTED) {
      const count = this.#counts[KVM_EXIT[name]];
      other -= count;
      if (count > 0) result[name.toLowerCase()] = count;
    }
    if (other > 0) result['other'] = other;
    return result;
  }

  /** All exits so far. */
  get exitCount(): number {
    return this.#counts.reduce((sum, count) => sum + count, 0);
  }

  /** Makes {@link runTurn} return before it enters the guest again: for devices that end the guest. */
  stop(): void {
    this.#stopping = true;
  }

  /**
   * Runs the guest until this thread's event loop has something to do, or {@link stop} was called; then returns
   * undefined: let the event loop turn, call again. An exit that no bus can serve is returned.
   *
   * @throws What a device's handler threw (a bug of the device), or VmmError code "IOCTL" where KVM_RUN failed.
   */
  runTurn(): VmExit | undefined {
    const vcpu = this.#vcpu;
    const { io, mmio } = vcpu.exit;
    const ports = this.#ports;
    const counts = this.#counts;
    while (!this.#stopping) {
      const code = vcpu.runInline();
      if (code === KVM_EXIT.IO) {
        counts[KVM_EXIT.IO]++;
        const { size, port, count } = io;
        if (io.isWrite) {
          for (let i = 0; i < count; i++) ports.write(port, size, io.getValue(i));
        } else {
          for (let i = 0; i < count; i++) io.setValue(ports.read(port, size), i);
        }
      } else if (code === KVM_EXIT.MMIO) {
        counts[KVM_EXIT.MMIO]++;
        const { size, gpa } = mmio;
        if (size === 4 || size === 2 || size === 1) {
          if (mmio.isWrite) this.#mmio.write(gpa, size, mmio.getValue(size));
          else mmio.setValue(this.#mmio.read(gpa, size), size);
        } else if (mmio.isWrite) {
          this.#mmio.writeWide(gpa, size, mmio.dataView, 0);
        } else {
          this.#mmio.readWide(gpa, size, mmio.dataView, 0);
        }
      } else if (code < 0) {
        counts[KVM_EXIT.INTR]++;
        return undefined;
      } else {
        if (code < COUNTERS) counts[code]++;
        return vcpu.exit.decode(code);
      }
    }
    return undefined;
  }
}

import type { Bus } from '../bus/bus.js';
import { KVM_EXIT } from '../kvm/abi.js';
import type { ExitDecoder, VmExit } from '../kvm/exit.js';

/** KVM's exit reasons by number, in lower case. */
const NAMES = new Map(Object.entries(KVM_EXIT).map(([name, code]) => [code as number, name.toLowerCase()]));

/** Serves port and MMIO exits from two buses, and counts exits. */
export class ExitServer {
  readonly #ports: Bus;
  readonly #mmio: Bus;
  /** Those that a guest has millions of are counted in the object itself, which is at hand anyway. */
  #ioExits = 0;
  #mmioExits = 0;
  readonly #counts = new Float64Array(64);

  constructor(ports: Bus, mmio: Bus) {
    this.#ports = ports;
    this.#mmio = mmio;
  }

  /** Exits served so far, by reason. */
  counts(): Record<string, number> {
    const result: Record<string, number> = {};
    this.#counts[KVM_EXIT.IO] = this.#ioExits;
    this.#counts[KVM_EXIT.MMIO] = this.#mmioExits;
    this.#counts.forEach((count, code) => {
      if (count > 0) result[NAMES.get(code) ?? `reason-${code}`] = count;
    });
    return result;
  }

  /** Counts a run that was interrupted for the event loop. */
  countInterruption(): void {
    this.#counts[KVM_EXIT.INTR]++;
  }

  /**
   * @param code KVM's exit reason, which `exit` decodes.
   * @returns undefined when the guest may go on, else the exit that only the machine can judge.
   */
  serve(exit: ExitDecoder, code: number): VmExit | undefined {
    if (code === KVM_EXIT.IO) {
      this.#ioExits++;
      const { io } = exit;
      const { size, port, count } = io;
      if (io.isWrite) {
        for (let i = 0; i < count; i++) this.#ports.write(port, size, io.getValue(i));
      } else {
        for (let i = 0; i < count; i++) io.setValue(this.#ports.read(port, size), i);
      }
      return undefined;
    }
    if (code === KVM_EXIT.MMIO) {
      this.#mmioExits++;
      const { mmio } = exit;
      const { size, gpa } = mmio;
      if (size === 4 || size === 2 || size === 1) {
        if (mmio.isWrite) this.#mmio.write(gpa, size, mmio.getValue(size));
        else mmio.setValue(this.#mmio.read(gpa, size), size);
      } else if (mmio.isWrite) {
        this.#mmio.writeWide(gpa, size, mmio.dataView, 0);
      } else {
        this.#mmio.readWide(gpa, size, mmio.dataView, 0);
      }
      return undefined;
    }
    this.#counts[code]++;
    return exit.decode(code);
  }
}

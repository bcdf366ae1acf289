/** Instruction sets of guests, as `uname -m` names them. Only the first is this host's. */
export type GuestArch = 'x86_64' | 'aarch64' | 'riscv64';

interface Architecture {
  /** As Debian calls it. */
  debian: string;
  /** The first serial port's device in Linux, on the machine that QEMU gives it. */
  serial: string;
}

export const ARCHITECTURES: Readonly<Record<GuestArch, Architecture>> = {
  x86_64: { debian: 'amd64', serial: 'ttyS0' },
  aarch64: { debian: 'arm64', serial: 'ttyAMA0' },
  riscv64: { debian: 'riscv64', serial: 'ttyS0' },
};

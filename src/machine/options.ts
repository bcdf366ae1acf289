import { resolve } from 'node:path';
import { z } from 'zod';
import { VmmError } from '../errors.js';
import type { MachineConfig } from './machine.js';

/** More than any host has; a limit that keeps all address arithmetic exact. */
const MAX_MEMORY_BYTES = 2 ** 40;
const PAGE_BYTES = 4096;
const MAX_CPUS = 255;

/**
 * What makes a guest talk to us and end when it is done: console and panic output on the first serial port, a reboot
 * instead of a halt after a panic. What the user gives follows, and so overrides it.
 */
const CMDLINE = 'console=ttyS0 panic=-1';

const path = z.string().min(1, 'a path is needed').refine(noNul, 'a path holds no NUL');

const memorySize = z
  .union([z.string(), z.number()], 'a size is needed: "256M", "2G", or a number of bytes')
  .transform((value, context) => {
    const bytes = typeof value === 'number' ? value : parseSize(value);
    if (bytes === undefined || !Number.isSafeInteger(bytes)) {
      context.addIssue(
        `${JSON.stringify(value)} is no size: give a number with K, M or G ("256M"), or a number of bytes`,
      );
    } else if (bytes < PAGE_BYTES || bytes % PAGE_BYTES !== 0) {
      context.addIssue(
        `${JSON.stringify(value)} is not a multiple of ${PAGE_BYTES} bytes above 0; a bare number counts bytes`,
      );
    } else if (bytes > MAX_MEMORY_BYTES) {
      context.addIssue(`${JSON.stringify(value)} is more than 1024 G`);
    }
    return bytes ?? z.NEVER;
  });

const schema = z.strictObject({
  kernel: path,
  initrd: path.optional(),
  cmdline: z.string().refine(noNul, 'a command line holds no NUL').default(''),
  cpus: z.number().int().min(1).max(MAX_CPUS).default(1),
  memory: memorySize.default(256 * 2 ** 20),
  accel: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
});

/** What a `MicroVM` is made from. */
export interface MicroVMOptions {
  /** Path of a kernel for x86-64: a bzImage (`vmlinuz`) or an ELF file (`vmlinux`). */
  kernel: string;
  /** Path of an initial RAM disk. */
  initrd?: string | undefined;
  /** Kernel parameters, after `console=ttyS0 panic=-1`, which they override. */
  cmdline?: string | undefined;
  /** Virtual CPUs, 1 to 255. Default 1. */
  cpus?: number | undefined;
  /** Guest RAM: a string with K, M or G (powers of 1,024), or a number of bytes. Default `256M`. */
  memory?: string | number | undefined;
  /** `kvm`, `tcg` (QEMU's emulator), or `auto`, the default: KVM where it can run an unmodified kernel at speed. */
  accel?: 'auto' | 'kvm' | 'tcg' | undefined;
}

/**
 * Checks options and fills in defaults. Paths become absolute.
 *
 * @throws VmmError code "INVALID_ARGUMENT" naming every option that is wrong, and what would be right.
 */
export function parseOptions(options: MicroVMOptions): { config: MachineConfig; accel: 'auto' | 'kvm' | 'tcg' } {
  const result = schema.safeParse(options);
  if (!result.success) throw new VmmError('INVALID_ARGUMENT', result.error.issues.map(describe).join('; '));
  const { kernel, initrd, cmdline, cpus, memory, accel } = result.data;
  return {
    config: {
      kernelPath: resolve(kernel),
      ...(initrd !== undefined && { initrdPath: resolve(initrd) }),
      cmdline: cmdline.trim() === '' ? CMDLINE : `${CMDLINE} ${cmdline.trim()}`,
      cpus,
      memoryBytes: memory,
    },
    accel,
  };
}

/** Bytes of "64K", "256M", "1.5G" or "1048576"; undefined for what is no size. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i.exec(text.trim());
  if (!match) return undefined;
  return Number(match[1]) * 1024 ** ' KMGT'.indexOf(match[2].toUpperCase() || ' ');
}

function describe(issue: z.core.$ZodIssue): string {
  if (issue.code === 'unrecognized_keys') {
    return `${issue.keys.join(', ')}: there is no such option (there are ${Object.keys(schema.shape).join(', ')})`;
  }
  return `${issue.path.join('.') || 'options'}: ${issue.message}`;
}

function noNul(text: string): boolean {
  return !text.includes('\0');
}

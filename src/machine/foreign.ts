import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { bootProtocol } from '../boot/kernel.js';
import { VmmError } from '../errors.js';
import type { MachineConfig } from './machine.js';

/** The command line of a kernel that is no Linux: by custom its name comes first. */
export function foreignCmdline({ kernelPath, kernelArguments }: MachineConfig): string {
  return `${basename(kernelPath!)} ${kernelArguments}`.trimEnd();
}

/** Whether a kernel is booted by Multiboot, without an initramfs of ours. @throws VmmError code "BAD_KERNEL" */
export async function isForeignKernel(kernelPath: string): Promise<boolean> {
  const file = await readFile(kernelPath).catch((cause: unknown) => {
    throw new VmmError('BAD_KERNEL', `${kernelPath} cannot be read: ${(cause as Error).message}`, { cause });
  });
  return bootProtocol(file) === 'multiboot';
}

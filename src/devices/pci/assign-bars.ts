import type { AddressWindow } from './bar-map.js';
import type { BarDescription } from './config-space.js';
import { BASE_ADDRESS_REGISTERS } from './defs.js';
import type { PciBus } from './pci-bus.js';

export interface AssignBarsConfig {
  memoryWindows: readonly AddressWindow[];
  portWindows: readonly AddressWindow[];
}

/**
 * Gives every BAR an address, as firmware would, for guests that start without any and cannot do it themselves. Decoding
 * stays off: the driver turns it on. Linux takes these addresses over, or moves them.
 *
 * Large BARs first, so that alignment leaves no gaps. The lowest window that has room is taken; 32-bit BARs stay below
 * 4 GiB, and ports that the machine uses are expected outside the windows.
 *
 * @returns How many BARs found no room; theirs stay 0.
 */
export function assignBars(pci: PciBus, { memoryWindows, portWindows }: AssignBarsConfig): number {
  const wanted = pci
    .functions()
    .flatMap(({ pciFunction: { config } }) =>
      config.bars.flatMap((bar, index) => (bar ? [{ config, bar, at: BASE_ADDRESS_REGISTERS + 4 * index }] : [])),
    )
    .sort((a, b) => b.bar.sizeBytes - a.bar.sizeBytes);
  const next = new Map([...memoryWindows, ...portWindows].map((window) => [window, window.base]));
  const take = ({ kind, sizeBytes }: BarDescription): number | undefined => {
    for (const window of kind === 'io' ? portWindows : memoryWindows) {
      const base = Math.ceil(next.get(window)! / sizeBytes) * sizeBytes;
      const limit = Math.min(window.base + window.sizeBytes, kind === 'memory64' ? Infinity : 2 ** 32);
      if (base + sizeBytes > limit) continue;
      next.set(window, base + sizeBytes);
      return base;
    }
    return undefined;
  };
  let left = 0;
  for (const { config, bar, at } of wanted) {
    const base = take(bar);
    if (base === undefined) {
      left++;
      continue;
    }
    config.write(at, 4, base % 2 ** 32);
    if (bar.kind === 'memory64') config.write(at + 4, 4, Math.floor(base / 2 ** 32));
  }
  return left;
}

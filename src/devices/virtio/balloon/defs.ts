/** Numbers of virtio 1.2, 5.5: the traditional memory balloon device. */

// 5.5.3 Feature bits
export const F_STATS_VQ = 1n << 1n;
export const F_DEFLATE_ON_OOM = 1n << 2n;
export const F_PAGE_REPORTING = 1n << 5n;

// 5.5.4 Device configuration layout: le32 each
export const CONFIG_NUM_PAGES = 0;
export const CONFIG_ACTUAL = 4;
export const CONFIG_BYTES = 8;

/** 5.5.6: the balloon counts in pages of this size, whatever size the guest's are. */
export const PAGE_BYTES = 4096;
/** Of a page number in the inflate and deflate queues: le32. */
export const PFN_BYTES = 4;

/** 5.5.6.3: le16 tag, le64 value, packed. */
export const STAT_BYTES = 10;
/** 5.5.6.4: the tags, by what they are called here. Bytes, but for the counts of faults and huge pages. */
export const STAT_TAGS = [
  'swapInBytes',
  'swapOutBytes',
  'majorFaults',
  'minorFaults',
  'freeBytes',
  'totalBytes',
  'availableBytes',
  'diskCachesBytes',
  'hugePageAllocations',
  'hugePageFailures',
] as const;

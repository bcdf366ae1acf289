import { writeFileSync } from 'node:fs';
import { format, resolveConfig } from 'prettier';

/** Writes a file of the project as `npm run format` would leave it. @param target Where it is written instead. */
export async function writeFormatted(path: string, text: string, target = path): Promise<void> {
  writeFileSync(target, await format(text, { ...(await resolveConfig(path)), filepath: path }));
}

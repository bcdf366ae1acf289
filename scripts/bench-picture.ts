/**
 * Pictures of a report's benchmarks, as a browser shows them in light and in dark: to look at the charts.
 *
 *   npm run bench:picture -- report.html OUT-DIRECTORY
 *
 * Needs Debian's chromium, which is installed when it is missing.
 */
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';
import { ensureInstalled } from '../src/guest/debian.js';

const [report = 'report.html', directory = '.'] = process.argv.slice(2);
const [executablePath] = await ensureInstalled([{ programs: ['chromium'], package: 'chromium' }]);
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
try {
  for (const colorScheme of ['light', 'dark'] as const) {
    const page = await browser.newPage({ colorScheme, viewport: { width: 960, height: 800 } });
    await page.goto(pathToFileURL(resolve(report)).href);
    for (const section of await page.locator('section').all()) {
      const name = (await section.locator('h2').getAttribute('id'))!.replace('/', '-');
      const path = join(directory, `${name}-${colorScheme}.png`);
      await section.screenshot({ path });
      console.log(path);
    }
  }
} finally {
  await browser.close();
}

// The script tag: <script src="https://collector/sparrow.js" data-key="..." data-pageview defer>

import { sparrow } from "./sparrow";

declare global {
  interface Window {
    sparrow: typeof sparrow;
  }
}

// A page that has the tag twice keeps the first.
if (!window.sparrow?.track) {
  window.sparrow = sparrow;
  const script = document.currentScript as HTMLScriptElement | null;
  const key = script?.dataset.key;
  if (script && key) {
    // The collector that the script is from, also under a path of a proxy.
    const host = script.dataset.host ?? script.src.replace(/\/[^/?#]*([?#].*)?$/, "");
    sparrow.init({ host, key });
    if (script.dataset.pageview !== undefined) {
      const seen = () => sparrow.pageview();
      // What a browser has loaded ahead is seen when it is shown, if ever.
      if ((document as { prerendering?: boolean }).prerendering)
        document.addEventListener("prerenderingchange", seen);
      else seen();
      // Back from the browser's memory it is seen again, and nothing is loaded.
      addEventListener("pageshow", (event) => event.persisted && seen());
    }
  }
}

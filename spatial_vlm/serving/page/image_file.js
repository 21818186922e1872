// An image that the reader gives: decoded, turned upright and made small enough to send, in the browser.

const LONGEST_SIDE = 1600;
const LARGEST_FILE = 64 * 1024 * 1024;

/**
 * Returns a file as a data URL of at most 1600 pixels a side, without the file's metadata (place, device).
 *
 * A PNG stays lossless; every other format becomes a JPEG. Throws Error for a file that the browser cannot read.
 */
export async function readImage(file) {
  if (file.size > LARGEST_FILE) {
    throw new Error(`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB; at most 64 are read.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} is no image that this browser can read; choose a PNG, JPEG or WebP file.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff"; // transparent pixels are seen on white, as on this page
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL(file.type === "image/png" ? "image/png" : "image/jpeg", 0.92);
}

/** Calls `take` with each image file that is chosen by `input`, pasted or dropped; `refuse` gets an Error. */
export function watchForImages(input, stage, take, refuse) {
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  document.addEventListener("paste", (event) => {
    const file = imageOf(event.clipboardData);
    if (file) {
      event.preventDefault();
      take(file);
    }
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) {
      stage.classList.remove("over");
    }
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    const file = imageOf(event.dataTransfer);
    if (file) {
      take(file);
    } else {
      refuse(new Error("Drop an image file; nothing else can be read."));
    }
  });
}

function imageOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

// Search in pages that are read from a folder. Browsers start no worker from a file there, so this runs the worker's
// script in a hidden frame, and hands messages to and fro.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside = new Promise(ready => {
        const script = inside.document.createElement("script")
        script.src = url
        script.onload = () => ready(inside)
        inside.document.body.append(script)
      })
    }
    postMessage(data) {
      this.inside.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
  }
}

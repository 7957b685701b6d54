// HTTP calls to the server. Every failure becomes an ApiError with one sentence a person can read.

const TOKEN_KEY = "streamavatar.token";

export class ApiError extends Error {
  constructor(status, { code = "", message = "", retryable = false } = {}, retryAfter = null) {
    super(message || `The server answered ${status}.`);
    this.status = status;
    this.code = code;
    this.retryable = retryable;
    this.retryAfter = retryAfter; // seconds
  }
}

export class Api {
  // The server's own token lives as long as the tab; a session's token goes with each call of that session.
  get token() {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  }

  set token(value) {
    sessionStorage.setItem(TOKEN_KEY, value);
  }

  headers(session, type) {
    const headers = {};
    const token = session ? session.token : this.token;
    if (token) headers.Authorization = `Bearer ${token}`;
    if (type) headers["Content-Type"] = type;
    return headers;
  }

  async call(method, path, { session = null, json, body, type, signal, keepalive = false } = {}) {
    let response;
    try {
      response = await fetch(path, {
        method,
        headers: this.headers(session, json === undefined ? type : "application/json"),
        body: json === undefined ? body : JSON.stringify(json),
        signal,
        keepalive,
        cache: "no-store",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { code: "unreachable", message: "The server cannot be reached.", retryable: true });
    }
    if (!response.ok) throw await failure(response);
    if (response.status === 204) return null;
    return response.headers.get("Content-Type")?.includes("json") ? response.json() : response;
  }

  avatars = () => this.call("GET", "/v1/avatars").then((answer) => answer.avatars);
  deleteAvatar = (id) => this.call("DELETE", `/v1/avatars/${encodeURIComponent(id)}`);
  samples = () => this.call("GET", "/v1/samples").then((answer) => answer.samples);
  capacity = () => this.call("GET", "/v1/capacity");
  open = (wishes, signal) => this.call("POST", "/v1/sessions", { json: wishes, signal });
  look = (session) => this.call("GET", sessionPath(session), { session });
  // keepalive: the call also leaves the browser when the page is closing.
  close = (session) => this.call("DELETE", sessionPath(session), { session, keepalive: true });
  offer = (session, sdp, signal) =>
    this.call("POST", sessionPath(session, "offer"), { session, json: { type: "offer", sdp }, signal });
  candidate = (session, candidate) =>
    this.call("PATCH", sessionPath(session, "offer"), { session, json: { candidate } });
  say = (session, text) => this.call("POST", sessionPath(session, "text"), { session, json: { text } });
  speak = (session, audio, type) =>
    this.call("POST", sessionPath(session, "speech"), { session, body: audio, type: type || "application/octet-stream" });
  interrupt = (session) => this.call("POST", sessionPath(session, "interrupt"), { session });

  async sample(id) {
    const response = await this.call("GET", `/v1/samples/${encodeURIComponent(id)}`);
    return response.blob();
  }

  // XMLHttpRequest, since fetch does not tell how much of an upload has gone.
  // crop: "face" looks for one, "centre" takes the middle as it is.
  uploadAvatar(file, crop, progress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", `/v1/avatars?crop=${crop}`);
      for (const [name, value] of Object.entries(this.headers(null, file.type))) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
      request.onerror = () => reject(new ApiError(0, { message: "The upload was cut off. Please try again." }));
      request.onload = () => {
        const answer = parsed(request.responseText);
        if (request.status === 201) resolve(answer);
        else reject(new ApiError(request.status, answer?.error));
      };
      request.send(file);
    });
  }
}

function sessionPath(session, part = "") {
  return `/v1/sessions/${encodeURIComponent(session.id)}${part && `/${part}`}`;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function failure(response) {
  const answer = parsed(await response.text());
  const retryAfter = Number.parseFloat(response.headers.get("Retry-After"));
  return new ApiError(response.status, answer?.error, Number.isFinite(retryAfter) ? retryAfter : null);
}

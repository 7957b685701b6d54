// The visitor's own faces. The server does not list them: whoever knows an id may use it, so this browser remembers.

const KEY = "streamavatar.faces";

export class OwnFaces {
  constructor(api) {
    this.api = api;
  }

  get #known() {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]");
  }

  set #known(faces) {
    localStorage.setItem(KEY, JSON.stringify(faces));
  }

  add(face) {
    this.#known = [...this.#known, face];
  }

  remove(face) {
    this.#known = this.#known.filter((known) => known.id !== face.id);
  }

  // Those that the server still has; it forgets them all when it restarts.
  async load() {
    const checked = await Promise.all(
      this.#known.map((face) =>
        this.api.call("GET", face.picture).then(
          () => face,
          (error) => (error.status === 404 ? null : face),
        ),
      ),
    );
    this.#known = checked.filter(Boolean);
    return this.#known;
  }
}

// Questions to the server; in an exported page the answers are in the page itself

export const exported = window.darkroomAnswers ?? null;

function address(name, asked) {
  const query = new URLSearchParams(Object.entries(asked)).toString();
  return `/api/${name}${query ? `?${query}` : ""}`;
}

export async function get(name, asked = {}, signal = undefined) {
  const path = address(name, asked);
  if (exported) {
    if (!(path in exported.answers)) throw new Error("this is not part of the exported page");
    return exported.answers[path];
  }
  return answer(await fetch(path, { signal }));
}

export async function post(name, said) {
  const headers = { "content-type": "application/json" };
  return answer(await fetch(`/api/${name}`, { method: "POST", headers, body: JSON.stringify(said) }));
}

async function answer(response) {
  const told = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(told.error);
  return told;
}

export function pictureUrl(number, side) {
  return exported ? exported.pictures[number] : `/picture/${number}?side=${side}`;
}

'use strict';

/* A double of LuCI's client API, as much of it as these pages use, with the habits that bite: a child that
   is a text and not in a list is taken as HTML, and a failed call of rpc looks like an answer. */

const TYPES = { s: String, d: value => String(Math.floor(+value || 0)) };

/* %s, %d, %.1f and %%. */
String.prototype.format = function(...values) {
	return this.replace(/%(?:%|([sd])|\.([0-9])f)/g, (match, type, digits) => {
		if (match == '%%')
			return '%';

		const value = values.shift();

		return type ? TYPES[type](value) : (+value || 0).toFixed(+digits);
	});
};

/* As loaded from the catalogue of the page's language. */
window.translations = {};

window._ = text => translations[text] ?? text;

class Base {
	static extend(members) {
		const extended = class extends this {};

		Object.assign(extended.prototype, members);

		return extended;
	}

	/* Of an instance that has a method of its own: the one of its class. */
	super(name, values) {
		return Object.getPrototypeOf(this)[name].apply(this, values);
	}
}

const dom = {
	elem: node => node != null && typeof(node) == 'object' && 'nodeType' in node,

	append(node, children) {
		if (Array.isArray(children)) {
			for (const child of children)
				if (child != null)
					node.append(this.elem(child) ? child : '%s'.format(child));
		}
		else if (this.elem(children)) {
			node.append(children);
		}
		else if (children != null) {
			node.innerHTML = '%s'.format(children);
		}
	},

	content(node, children) {
		node.replaceChildren();
		this.append(node, children);
	},

	create(name, attributes, children) {
		if (Array.isArray(name))
			return this.fill(document.createDocumentFragment(), attributes);

		const plain = attributes != null && !Array.isArray(attributes) && !this.elem(attributes) && typeof(attributes) == 'object';
		const node = document.createElement(name);

		for (const [ key, value ] of Object.entries(plain ? attributes : {})) {
			if (typeof(value) == 'function')
				node.addEventListener(key, value);
			else if (value != null)
				node.setAttribute(key, value);
		}

		return this.fill(node, plain ? children : attributes);
	},

	fill(node, children) {
		this.append(node, children);

		return node;
	}
};

window.E = dom.create.bind(dom);

/* Calls go to the test, which answers as uhttpd does. */
const rpc = {
	declare({ object, method, params }) {
		return async (...values) => {
			const named = Object.fromEntries((params ?? []).map((name, index) => [ name, values[index] ]));
			const response = await fetch('/ubus', { method: 'POST', body: JSON.stringify({ object, method, params: named }) });
			const { error, result } = await response.json();

			if (error)
				throw new Error('RPC call to %s/%s failed with error %d: %s'.format(object, method, error.code, error.message));

			return (result.length > 1) ? result[1] : result[0];
		};
	}
};

const poll = {
	add(step, seconds) {
		const next = () => setTimeout(() => Promise.resolve(step()).finally(next), 1000 * seconds);

		next();
	}
};

const modules = {
	baseclass: Base,
	dom,
	poll,
	rpc,
	view: Base
};

window.L = {
	url: (...parts) => '/cgi-bin/luci/%s'.format(parts.join('/')),
	resource: path => '/resources/%s'.format(path),
	hasViewPermission: () => !new URLSearchParams(location.search).has('readonly'),
	resolveDefault: (promise, value) => Promise.resolve(promise).catch(() => value),
	toArray: value => (value == null) ? [] : Array.isArray(value) ? value : value.trim().split(/\s+/),

	/* Loads a class and those it requires, and makes its one instance. */
	require(name) {
		return Promise.resolve(modules[name] ??= fetch(L.resource('%s.js'.format(name.replace(/\./g, '/')))).then(async response => {
			const source = await response.text();
			const directives = [ ...source.matchAll(/^'require (\S+?)(?: as (\w+))?';$/gm) ];
			const required = await Promise.all(directives.map(([ , from ]) => L.require(from)));
			const names = directives.map(([ , from, as ]) => as ?? from.replace(/\W/g, '_'));
			const made = new Function(...names, '%s\n//# sourceURL=%s'.format(source, name))(...required);

			return modules[name] = new made();
		}));
	}
};

/* Shows the view that the address names; a part of LuCI's status page otherwise. */
addEventListener('DOMContentLoaded', async () => {
	const asked = new URLSearchParams(location.search);
	const main = document.querySelector('#view');

	document.documentElement.dataset.darkmode = matchMedia('(prefers-color-scheme: dark)').matches;

	if (asked.has('lang'))
		translations = await (await fetch('/translations/%s'.format(asked.get('lang')))).json();

	const page = await L.require(asked.get('view'));
	const loaded = await page.load?.();

	dom.content(main, await page.render(loaded));

	if (page.map)
		main.append(E('button', { 'id': 'save', 'click': () => page.map.save() }, [ 'Save' ]));

	main.dataset.ready = true;
});

'use strict';
'require baseclass';
'require dom';
'require uci';

/* Forms of the double: all options of all sections, one below the other, and no dialogues. */

const Option = baseclass.extend({
	rmempty: true,
	dependencies: [],

	depends(name, value) {
		this.dependencies = [ ...this.dependencies, [ name, value ] ];
	},

	id(name) {
		return '%s.%s'.format(name, this.option);
	},

	load(name) {
		return uci.get(this.map.config, name, this.option);
	},

	validate() {
		return true;
	},

	isActive(name) {
		return this.dependencies.every(([ other, value ]) => this.section.formvalue(name, other) == value);
	},

	formvalue(name) {
		return this.map.root.querySelector('[id="%s"]'.format(this.id(name)))?.value;
	},

	render(name) {
		const value = this.load(name) ?? this.default;
		const input = this.renderInput(name, value);

		input.id = this.id(name);
		input.placeholder = this.placeholder ?? '';

		return E('label', { 'data-option': this.option }, [ this.title, ' ', input, E('small', {}, [ this.description ]) ]);
	},

	/* Stores what was entered, or is rejected with what is wrong with it. */
	async parse(name) {
		const value = this.isActive(name) ? this.formvalue(name) : null;

		if (value == null || value.length == 0 || value == this.default) {
			if (value != null && !this.rmempty && value.length == 0)
				throw new TypeError('"%s" must not be empty'.format(this.title));

			return (value != null && !this.rmempty) ? this.write(name, value) : this.remove(name);
		}

		for (const item of [ value ].flat()) {
			const judgement = this.validate(name, item);

			if (judgement !== true)
				throw new TypeError('"%s": %s'.format(this.title, judgement));
		}

		return this.write(name, value);
	},

	write(name, value) {
		uci.set(this.map.config, name, this.option, value);
	},

	remove(name) {
		uci.unset(this.map.config, name, this.option);
	}
});

const Value = Option.extend({
	/* Choices are proposals. */
	value() {},

	renderInput(name, value) {
		return E('input', { 'type': 'text', 'value': value ?? '' });
	}
});

const DynamicList = Value.extend({
	renderInput(name, value) {
		return E('textarea', {}, [ L.toArray(value).join('\n') ]);
	},

	formvalue(name) {
		const text = Option.prototype.formvalue.call(this, name);

		return text?.split('\n').filter(line => line !== '');
	}
});

const ListValue = Option.extend({
	value(key, title) {
		this.choices = [ ...(this.choices ?? []), [ key, title ] ];
	},

	renderInput(name, value) {
		return E('select', {}, this.choices.map(([ key, title ]) =>
			E('option', { 'value': key, 'selected': (key == value) || null }, [ title ])));
	}
});

const Flag = Option.extend({
	enabled: '1',
	disabled: '0',
	default: '0',

	renderInput(name, value) {
		return E('input', { 'type': 'checkbox', 'checked': (value == this.enabled) || null });
	},

	formvalue(name) {
		const box = this.map.root.querySelector('[id="%s"]'.format(this.id(name)));

		return box.checked ? this.enabled : this.disabled;
	}
});

const DummyValue = Option.extend({
	render(name) {
		return E('output', {}, [ this.textvalue(name) ]);
	},

	parse() {}
});

const Section = baseclass.extend({
	option(type, name, title, description) {
		const option = Object.assign(new type(), { map: this.map, section: this, option: name, title, description });

		this.children = [ ...(this.children ?? []), option ];

		return option;
	},

	formvalue(name, option) {
		return this.children.find(child => child.option == option)?.formvalue(name);
	},

	render() {
		return E('fieldset', { 'data-type': this.type }, [
			E('legend', {}, [ this.title ]),
			E('p', {}, [ this.description ]),
			...this.cfgsections().map(name => E('div', { 'data-section': name }, [
				E('h4', {}, [ this.modaltitle?.(name) ?? name ]),
				...this.children.map(child => child.render(name))
			])),
			this.renderSectionAdd()
		]);
	},

	renderSectionAdd() {
		if (!this.addremove)
			return E([]);

		const name = E('input', { 'type': 'text', 'class': 'new-name' });
		const add = () => {
			uci.add(this.map.config, this.type, this.name ?? name.value);

			return this.map.renderContents();
		};

		return E('div', {}, [ name, E('button', { 'class': 'add', 'click': add }, [ 'Add' ]) ]);
	},

	parse() {
		return Promise.all(this.cfgsections().flatMap(name => this.children.map(child => child.parse(name))));
	}
});

const NamedSection = Section.extend({
	begin(name, type, title, description) {
		Object.assign(this, { name, type, title, description });
	},

	cfgsections() {
		return uci.section(this.map.config, this.name) ? [ this.name ] : [];
	}
});

const GridSection = Section.extend({
	begin(type, title, description) {
		Object.assign(this, { type, title, description });
	},

	cfgsections() {
		return uci.sections(this.map.config, this.type).map(section => section['.name']);
	}
});

class Map {
	constructor(config) {
		this.config = config;
		this.children = [];
		this.root = E('form', { 'submit': event => event.preventDefault() });
	}

	section(type, ...values) {
		const section = new type();

		section.map = this;
		section.begin(...values);
		this.children.push(section);

		return section;
	}

	load() {
		return uci.load(this.config);
	}

	async render() {
		await this.load();

		return this.renderContents();
	}

	reset() {
		return this.renderContents();
	}

	async renderContents() {
		dom.content(this.root, this.children.map(child => child.render()));

		return this.root;
	}

	/* Shows what is wrong with the form, or stores it. */
	async save() {
		try {
			await Promise.all(this.children.map(child => child.parse()));
			await uci.save(this.config);
			this.root.dataset.saved = '';
		}
		catch (error) {
			this.root.dataset.saved = error.message;
		}
	}
}

return baseclass.extend({ DummyValue, DynamicList, Flag, GridSection, ListValue, Map, NamedSection, Value });

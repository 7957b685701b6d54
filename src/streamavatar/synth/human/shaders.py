"""GLSL of the renderer: one source per stage, made special for a kind of surface by `#define KIND`.

Light is computed in linear colours and leaves the fragment stage in display colours, so that supersampling averages
what the eye sees and bright highlights do not alias.
"""

from __future__ import annotations

VERSION = "#version 330\n"
KINDS = {"skin": 0, "tongue": 0, "eye": 1, "teeth": 2, "hair": 3, "brows": 3, "lashes": 3, "cloth": 4}

VIEW = """
layout(std140) uniform View {
    mat4 to_clip;
    mat4 to_shadow;   // to [0,1] on the shadow map
    vec4 eye;
    vec4 key_direction;
    vec4 fill_direction;
    vec4 key;
    vec4 fill;
    vec4 sky;
    vec4 ground;
};
"""

SKINNING = """
layout(std140) uniform Bones { vec4 bones[768]; };  // three rows per bone, 256 bones
in vec3 position;
in uvec4 joint;
in vec4 weight;

vec4 row(int i) {
    return bones[int(joint.x) * 3 + i] * weight.x + bones[int(joint.y) * 3 + i] * weight.y
         + bones[int(joint.z) * 3 + i] * weight.z + bones[int(joint.w) * 3 + i] * weight.w;
}
"""

SURFACE_VERTEX = (
    VERSION
    + VIEW
    + SKINNING
    + """
in vec3 normal;
in float open;
in vec2 uv;
out vec3 at;
out vec3 outward;
out vec2 place;
out float openness;
void main() {
    mat3x4 posed = mat3x4(row(0), row(1), row(2));
    at = vec4(position, 1.0) * posed;
    outward = vec4(normal, 0.0) * posed;
    place = vec2(uv.x, 1.0 - uv.y);
    openness = open;
    gl_Position = to_clip * vec4(at, 1.0);
}
"""
)

SHADOW_VERTEX = (
    VERSION
    + VIEW
    + SKINNING
    + """
in vec2 uv;
out vec2 place;
void main() {
    place = vec2(uv.x, 1.0 - uv.y);
    vec3 at = vec4(position, 1.0) * mat3x4(row(0), row(1), row(2));
    gl_Position = to_shadow * vec4(at, 1.0) * 2.0 - 1.0;
}
"""
)

DEPTH_VERTEX = """#version 330
uniform mat4 to_clip;
in vec3 position;
void main() { gl_Position = to_clip * vec4(position, 1.0); }
"""

SHADOW_FRAGMENT = """#version 330
void main() {}
"""

SHADOW_CUTOUT_FRAGMENT = """#version 330
uniform sampler2D colour_map;
in vec2 place;
void main() { if (texture(colour_map, place).a < 0.5) discard; }
"""

SURFACE_FRAGMENT = (
    VERSION
    + "#define KIND {kind}\n#define CUTOUT {cutout}\n#define EXPOSURE 0.9\n"
    + VIEW
    + """
uniform sampler2D colour_map;
uniform sampler2D normal_map;
uniform sampler2D occlusion_map;
uniform sampler2DShadow shadow_map;
uniform vec3 tint;
uniform float gloss;
uniform bool has_normals;
uniform bool thin;
uniform float most_cover;
in vec3 at;
in vec3 outward;
in vec2 place;
in float openness;
out vec4 colour;

// Wrapped diffuse: light reaches around the edge by `wrap`, per colour.
vec3 wrapped(float cosine, vec3 wrap) {
    vec3 lit = clamp((cosine + wrap) / (1.0 + wrap), 0.0, 1.0);
    return lit * lit * (3.0 - 2.0 * lit) * 0.35 + lit * 0.65;
}

float lit_by_key(vec3 normal) {
    vec3 spot = (to_shadow * vec4(at + normal * 0.003, 1.0)).xyz;
    // Turned by a pattern that repeats every 2x2 samples: supersampling averages it away.
    vec2 turn = (mod(floor(gl_FragCoord.xy), 2.0) - 0.5) * 2.0;
    vec2 step = turn * SOFTNESS;
    float sum = texture(shadow_map, spot + vec3(step, 0.0));
    sum += texture(shadow_map, spot + vec3(-step.y, step.x, 0.0) * 1.7);
    sum += texture(shadow_map, spot - vec3(step, 0.0) * 0.4);
    return sum / 3.0;
}

// Straight up to `knee`, then a shoulder that never reaches 1: keeps the hue of skin.
vec3 to_display(vec3 linear) {
    const float knee = 0.55;
    vec3 over = max(linear - knee, 0.0) / (1.0 - knee);
    vec3 mapped = min(linear, knee) + (1.0 - knee) * (1.0 - exp(-over));
    return 1.055 * pow(max(mapped, 0.0), vec3(1.0 / 2.4)) - 0.055;
}

vec3 bumped(vec3 normal, vec3 bump) {
    vec3 dx = dFdx(at), dy = dFdy(at);
    vec2 ux = dFdx(place), uy = dFdy(place);
    vec3 t = dx * uy.y - dy * ux.y;
    vec3 b = dx * uy.x - dy * ux.x;
    float scale = inversesqrt(max(max(dot(t, t), dot(b, b)), 1e-20));
    return normalize(normal * bump.z + (t * bump.x + b * bump.y) * scale);
}

void main() {
    vec4 texel = texture(colour_map, place);
    float cover = 1.0;
#if CUTOUT
    // Once for what is solid, which hides what lies behind, then once for the thin ends, blended over the rest.
    cover = min(texel.a * 1.25, 1.0);
    if (cover < (thin ? 0.02 : SOLID) || (thin && cover >= most_cover)) discard;
    if (!thin) cover = 1.0;
#endif
    vec3 albedo = texel.rgb * tint;
    vec3 normal = normalize((gl_FrontFacing ? outward : -outward) + vec3(0.0, 0.0, 1e-6));
    vec3 view = normalize(eye.xyz - at);
    float ao = openness;
#if KIND == 4
    if (has_normals) normal = bumped(normal, texture(normal_map, place).xyz * 2.0 - 1.0);
    ao *= texture(occlusion_map, place).r;
#endif
    vec3 k = key_direction.xyz;
    float cos_key = dot(normal, k), cos_fill = dot(normal, fill_direction.xyz), facing = max(dot(normal, view), 0.0);
    float shadow = lit_by_key(normal);
    vec3 ambient = mix(ground.rgb, sky.rgb, normal.y * 0.5 + 0.5);
    float edge = 1.0 - facing;
    float rim = edge * edge;
    rim *= rim;
    vec3 half_way = normalize(k + view);
    float shine = max(dot(normal, half_way), 0.0);
    vec3 light, glint = vec3(0.0);

#if KIND == 0
    // Skin textures are painted stronger than skin is under white light.
    albedo = mix(vec3(dot(albedo, vec3(0.3, 0.5, 0.2))), albedo, 0.84);
    // Red travels furthest under the surface, so the terminator and shadow edges go red.
    vec3 scattered = pow(vec3(shadow), vec3(0.7, 0.97, 1.03));
    vec3 soft_ao = vec3(pow(ao, 0.85), ao, ao);
    light = key.rgb * wrapped(cos_key, vec3(0.3, 0.18, 0.13)) * scattered
          + (fill.rgb * wrapped(cos_fill, vec3(0.38, 0.28, 0.24)) + ambient) * soft_ao;
    float tone = dot(texel.rgb, vec3(0.333)), around = dot(texture(colour_map, place, 3.0).rgb, vec3(0.333));
    float pores = clamp(1.0 + 4.0 * (tone - around) / (around + 0.15), 0.4, 1.5);
    float lips = smoothstep(0.62, 0.75, 1.0 - texel.g / max(texel.r, 0.02));
    float lobes = 0.7 * pow(shine, 12.0) + (1.3 + 5.0 * lips) * pow(shine, 48.0);
    float fresnel = 0.084 + 1.5 * rim * rim;
    glint = gloss * pores * (key.rgb * lobes * fresnel * shadow * step(0.0, cos_key) + sky.rgb * rim * 0.22 * ao);
#elif KIND == 1
    // Eyes: the lids shade the ball from above; two windows are mirrored, held where the cornea faces the viewer.
    float lid = mix(0.4, 0.9, smoothstep(0.75, -0.1, normal.y)) * mix(0.6, 1.0, ao);
    light = key.rgb * wrapped(cos_key, vec3(0.3)) * mix(0.35, 1.0, shadow);
    light = (light + fill.rgb * wrapped(cos_fill, vec3(0.4)) + ambient) * lid;
    vec3 window = normalize(normalize(k + view * 0.3) + view);
    vec3 second = normalize(normalize(fill_direction.xyz + view * 1.2) + view);
    glint = key.rgb * pow(max(dot(normal, window), 0.0), 200.0) * 3.0;
    glint = (glint + fill.rgb * pow(max(dot(normal, second), 0.0), 120.0) * 0.4) * lid * gloss;
#elif KIND == 2
    // Teeth: the lips' shadow is soft, since light also comes through and around them.
    light = key.rgb * wrapped(cos_key, vec3(0.5)) * mix(0.45, 1.0, shadow);
    light = (light + fill.rgb * wrapped(cos_fill, vec3(0.6)) + ambient)
          * (0.5 + 0.7 * smoothstep(0.0, 0.35, ao)) * vec3(1.06, 1.0, 0.9);
    glint = key.rgb * pow(shine, 60.0) * 0.25 * gloss * shadow * ao;
#elif KIND == 3
    // Hair: the texture holds the strands; light wraps far around, and the highlight is a band across them.
    vec3 strand = normalize(vec3(0.0, -1.0, 0.0) + normal * (normal.y - 1e-3));  // down along the surface
    float along = dot(strand, half_way);
    float band = pow(max(1.0 - along * along, 0.0), 20.0) * smoothstep(-0.2, 0.4, cos_key);
    light = key.rgb * wrapped(cos_key, vec3(0.3)) * shadow + (fill.rgb * wrapped(cos_fill, vec3(0.5)) + ambient) * ao;
    glint = key.rgb * band * (0.05 + 0.5 * albedo) * gloss * mix(0.3, 1.0, shadow) * ao;
#else
    light = key.rgb * wrapped(cos_key, vec3(0.12)) * shadow + (fill.rgb * wrapped(cos_fill, vec3(0.2)) + ambient) * ao;
    glint = (sky.rgb * rim * 0.35 * albedo + key.rgb * pow(shine, 20.0) * 0.04 * gloss * shadow) * ao;
#endif
    colour = vec4(to_display(EXPOSURE * (albedo * light + glint)), cover);
}
"""
)

QUAD_VERTEX = """#version 330
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }
"""

BACKDROP_FRAGMENT = """#version 330
uniform sampler2D picture;
uniform int samples;
out vec4 colour;
void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy) / samples;
    int rows = textureSize(picture, 0).y;
    colour = texelFetch(picture, ivec2(pixel.x, rows - 1 - pixel.y), 0);
}
"""

# Averages samples x samples and turns the picture the right way up: the first row read is the top.
RESOLVE_FRAGMENT = """#version 330
uniform sampler2D picture;
uniform int samples;
out vec4 colour;
void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy);
    pixel.y = textureSize(picture, 0).y / samples - 1 - pixel.y;
    vec4 sum = vec4(0.0);
    for (int y = 0; y < samples; y++)
        for (int x = 0; x < samples; x++) sum += texelFetch(picture, pixel * samples + ivec2(x, y), 0);
    colour = sum / float(samples * samples);
}
"""
